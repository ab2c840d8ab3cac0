"""Cross-validation over training bags: how long to train, and where to draw the line. No test bag comes near it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cytomil.errors import FeatureFileError
from cytomil.mil.train import TrainingBag, positive_probability, training_epochs
from cytomil.progress import Listener
from cytomil.settings import FitMilSettings


@dataclass(frozen=True)
class HeldOut:
    """Each training bag's probability from models that did not see its patient.

    ``probabilities`` (n_bags,) at the chosen number of epochs; ``fold`` (n_bags,) is the fold that held the bag out;
    ``loss_by_epoch`` (epochs,) is the mean held-out log loss.
    """

    probabilities: np.ndarray
    fold: np.ndarray
    n_epochs: int
    loss_by_epoch: np.ndarray


def cross_validate(bags: Sequence[TrainingBag], settings: FitMilSettings, listener: Listener) -> HeldOut:
    """Train on all folds but one, for every fold and seed of the ensemble, and watch the held-out bags epoch by epoch.

    The number of epochs is the one with the least held-out log loss of the averaged ensemble. Raises
    `FeatureFileError` where a label has fewer than two patients.
    """
    folds = assign_folds(bags, settings)
    labels = np.array([bag.label for bag in bags])
    by_epoch = np.zeros((settings.epochs, len(bags)))
    jobs = [(fold, member) for fold in range(folds.max() + 1) for member in range(settings.ensemble)]
    for fold, member in listener.track(jobs, "cross-validating", unit="fits"):
        kept = [bag for bag, other in zip(bags, folds, strict=True) if other != fold]
        held = np.flatnonzero(folds == fold).tolist()
        for epoch, (model, standardise) in enumerate(
            training_epochs(kept, settings, settings.epochs, member_seed(settings, member))
        ):
            for i in held:
                by_epoch[epoch, i] += positive_probability(model, standardise(bags[i].values)) / settings.ensemble
    certain = np.clip(by_epoch, 1e-7, 1 - 1e-7)
    loss = -np.where(labels == 1, np.log(certain), np.log1p(-certain)).mean(axis=1)
    best = int(loss.argmin())
    return HeldOut(by_epoch[best], folds, best + 1, loss)


def assign_folds(bags: Sequence[TrainingBag], settings: FitMilSettings) -> np.ndarray:
    """The fold of each bag, (n_bags,): no patient in two folds, both labels in every fold."""
    from sklearn.model_selection import StratifiedGroupKFold

    labels = np.array([bag.label for bag in bags])
    patients = [bag.patient for bag in bags]
    fewest = min(len({p for p, label in zip(patients, labels, strict=True) if label == side}) for side in (0, 1))
    if fewest < 2:
        raise FeatureFileError(
            f"cross-validation needs at least two patients of each label among the training bags; one label has {fewest}. "
            "Make more bags."
        )
    splitter = StratifiedGroupKFold(min(settings.folds, fewest), shuffle=True, random_state=settings.seed)
    folds = np.zeros(len(bags), int)
    for number, (_, held) in enumerate(splitter.split(np.zeros(len(bags)), labels, patients)):
        folds[held] = number
    return folds


def member_seed(settings: FitMilSettings, member: int) -> int:
    """The seed of one model of the ensemble."""
    return settings.seed * 1_000 + member
