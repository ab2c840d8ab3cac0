"""Cross-validation over training bags: how long to train, and where to draw the line. No test bag comes near it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cytomil.errors import FeatureFileError
from cytomil.mil.aggregators.base import Aggregator, JudgedBags
from cytomil.mil.aggregators.registry import find_aggregator
from cytomil.mil.bags import Standardiser, TrainingBag
from cytomil.mil.config import FitMilConfig
from cytomil.mil.train import fit_side_by_side, positive_probability, training_epochs
from cytomil.progress import Listener


@dataclass(frozen=True)
class HeldOut:
    """Each training bag's probability from models that did not see its patient.

    ``probabilities`` (n_bags,) at the chosen number of epochs; ``fold`` (n_bags,) is the fold that held the bag out;
    ``loss_by_epoch`` (epochs,) is the mean held-out log loss. What is not fitted over epochs counts as one epoch.
    """

    probabilities: np.ndarray
    fold: np.ndarray
    n_epochs: int
    loss_by_epoch: np.ndarray


def cross_validate(bags: Sequence[TrainingBag], settings: FitMilConfig, listener: Listener) -> HeldOut:
    """Hold every bag out once: by one fit where the aggregator does so itself (`of_judged`), else by `over_folds`.

    Raises `FeatureFileError` where a label has fewer than two patients.
    """
    require_two_patients(bags)
    if find_aggregator(settings.aggregator).holds_out:

        def fit_once(_: int, check: Callable[[], None]) -> JudgedBags | None:
            *_others, (model, _standardise) = training_epochs(bags, settings, 1, member_seed(settings, 0))
            return model.judged

        (judged,) = fit_side_by_side([0], fit_once, settings.workers, listener, "cross-validating")
        if (held_out := of_judged(judged)) is not None:
            return held_out
    return over_folds(bags, settings, listener)


def over_folds(bags: Sequence[TrainingBag], settings: FitMilConfig, listener: Listener) -> HeldOut:
    """Train on all folds but one, for every fold and seed of the ensemble, and watch the held-out bags epoch by epoch.

    The number of epochs is the one with the least held-out log loss of the averaged ensemble. Raises `FeatureFileError`
    where a label has fewer than two patients.
    """
    folds = assign_folds(bags, settings)
    labels = np.array([bag.label for bag in bags])
    kind = find_aggregator(settings.aggregator)
    kept_by_fold = [
        [bag for bag, other in zip(bags, folds, strict=True) if other != fold] for fold in range(folds.max() + 1)
    ]
    standardisers = [Standardiser.of(kept) for kept in kept_by_fold]

    def fit(job: tuple[int, int], check: Callable[[], None]) -> list[list[float]]:
        fold, member = job
        seed, standardise = member_seed(settings, member), standardisers[fold]
        dtype = kind.fitted_in(settings)
        held = [standardise(bag.values).to(dtype) for bag, other in zip(bags, folds, strict=True) if other == fold]
        by_epoch = []
        for model, _ in training_epochs(kept_by_fold[fold], settings, settings.epochs, seed, standardise):
            check()
            by_epoch.append([positive_probability(model, values) for values in held])
        return by_epoch

    members = n_members(kind, settings)
    jobs = [(fold, member) for fold in range(len(standardisers)) for member in range(members)]
    found = fit_side_by_side(jobs, fit, settings.workers, listener, "cross-validating")
    by_epoch = np.zeros((len(found[0]), len(bags)))
    for (fold, _), probabilities in zip(jobs, found, strict=True):
        by_epoch[:, folds == fold] += np.array(probabilities) / members
    loss = _log_loss(by_epoch, labels)
    best = int(loss.argmin())
    return HeldOut(by_epoch[best], folds, best + 1, loss)


def of_judged(judged: JudgedBags | None) -> HeldOut | None:
    """The bags that an aggregator held out itself, where no patient stands in two of its folds.

    Scorer and curve of probability are of other patients' bags. The features' standardisation alone has seen all cells.
    """
    if judged is None or judged.fold is None or judged.apart is None:
        return None
    return HeldOut(judged.apart, judged.fold, 1, _log_loss(judged.apart[None], judged.labels))


def _log_loss(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    certain = np.clip(probabilities, 1e-7, 1 - 1e-7)
    loss: np.ndarray = -np.where(labels == 1, np.log(certain), np.log1p(-certain)).mean(axis=1)
    return loss


def require_two_patients(bags: Sequence[TrainingBag]) -> int:
    """The patients of the label that has fewer, at least two. Raises `FeatureFileError` where it has not."""
    fewest = min(len({bag.patient for bag in bags if bag.label == label}) for label in (0, 1))
    if fewest < 2:
        raise FeatureFileError(
            f"cross-validation needs at least two patients of each label among the training bags; one label has {fewest}. "
            "Make more bags."
        )
    return fewest


def assign_folds(bags: Sequence[TrainingBag], settings: FitMilConfig) -> np.ndarray:
    """The fold of each bag, (n_bags,): no patient in two folds, both labels in every fold."""
    from sklearn.model_selection import StratifiedGroupKFold

    fewest = require_two_patients(bags)
    labels = np.array([bag.label for bag in bags])
    patients = [bag.patient for bag in bags]
    splitter = StratifiedGroupKFold(min(settings.folds, fewest), shuffle=True, random_state=settings.seed)
    folds = np.zeros(len(bags), int)
    for number, (_, held) in enumerate(splitter.split(np.zeros(len(bags)), labels, patients)):
        folds[held] = number
    return folds


def member_seed(settings: FitMilConfig, member: int) -> int:
    """The seed of one model of the ensemble."""
    return settings.seed * 1_000 + member


def n_members(kind: type[Aggregator], settings: FitMilConfig) -> int:
    """How many models are averaged."""
    return settings.ensemble if kind.averaged else 1
