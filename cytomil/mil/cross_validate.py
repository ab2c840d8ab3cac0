"""Fit aggregators from several seeds in parallel, and cross-validate them over the training bags.

Cross-validation chooses the number of epochs, and provides the held-out probabilities for the choice of thresholds. It
does not use test bags.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Event
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from cytomil.errors import FeatureFileError
from cytomil.mil.aggregators.base import Aggregator, CrossFittedBags
from cytomil.mil.aggregators.registry import find_aggregator, own_config
from cytomil.mil.bags import Standardiser, TrainingBag
from cytomil.mil.config import FitMilConfig, InstanceScore
from cytomil.progress import Listener
from cytomil.threads import usable_cores

_BLOCK = 8192
SCORE_BIN_EDGES = tuple(float(edge) for edge in np.geomspace(1e-2, 1e3, 41))


@dataclass(frozen=True)
class Assessment:
    """The model's result for one bag.

    Args:
        probability: of being positive, 0 to 1.
        scores: (N,), above 0, one per instance, in the unit of `Ensemble.meaning`.
    """

    probability: float
    scores: np.ndarray


@dataclass(frozen=True)
class Member:
    """One aggregator, its standardiser, and its unit of evidence (`reference_evidence`)."""

    aggregator: Aggregator
    standardise: Standardiser
    reference: float


@dataclass(frozen=True)
class Ensemble:
    """Aggregators of one kind whose results are averaged. ``name`` is the name of the kind in the registry."""

    name: str
    members: tuple[Member, ...]
    instance_score: InstanceScore

    def assess(self, values: np.ndarray) -> Assessment:
        """Assess a bag's embeddings, float32 (N ≥ 1, D): the mean over the members."""
        return self.assess_blocks([values])

    def assess_blocks(self, blocks: Iterable[np.ndarray]) -> Assessment:
        """Assess a bag in blocks of embeddings, float32 (n ≥ 1, D). Each is read once. One block is in memory at a time."""
        reading = self.begin()
        for block in blocks:
            reading.add(block)
        return reading.result()

    def begin(self) -> EnsembleReading:
        """Start reading a bag."""
        return EnsembleReading(self)

    @property
    def cross_fitted(self) -> CrossFittedBags | None:
        """`Aggregator.cross_fitted` of the only member; None for aggregators that are averaged."""
        return self.members[0].aggregator.cross_fitted

    @property
    def meaning(self) -> str:
        """The meaning of an instance's score, in words that follow a number."""
        return self.members[0].aggregator.meaning[self.instance_score]


class EnsembleReading:
    """Reads one bag block by block with all members."""

    def __init__(self, ensemble: Ensemble) -> None:
        self._ensemble = ensemble
        self._readings = [member.aggregator.read(ensemble.instance_score) for member in ensemble.members]

    @torch.inference_mode()
    def add(self, block: np.ndarray) -> None:
        """Take the bag's next embeddings, float32 (n ≥ 1, D)."""
        # A slide has too many cells to standardise all of them at once.
        for part in torch.from_numpy(block).split(_BLOCK):
            for member, reading in zip(self._ensemble.members, self._readings, strict=True):
                reading.add(member.standardise(part))

    @torch.inference_mode()
    def result(self) -> Assessment:
        """The mean over the members."""
        probabilities, scores = zip(*(reading.result() for reading in self._readings), strict=True)
        evidence = self._ensemble.instance_score is InstanceScore.EVIDENCE
        units = [member.reference if evidence else 1.0 for member in self._ensemble.members]
        scaled = [score.div(unit).numpy() for score, unit in zip(scores, units, strict=True)]
        return Assessment(float(np.mean(probabilities)), np.mean(scaled, axis=0))


def reference_evidence(aggregator: Aggregator, standardise: Standardiser, bags: Sequence[TrainingBag]) -> float:
    """The unit of evidence: its mean over all instances of the negative bags among ``bags``."""
    scores: list[Tensor] = [aggregator.assess(standardise(bag.values))[1] for bag in bags if bag.label == 0]
    return float(torch.cat(scores).mean())


def score_shares(scores: np.ndarray) -> np.ndarray:
    """Fraction of instances per bin of `SCORE_BIN_EDGES`. Scores beyond the edges count in the outermost bins."""
    clipped = np.clip(scores, SCORE_BIN_EDGES[0], SCORE_BIN_EDGES[-1])
    counts, _ = np.histogram(clipped, SCORE_BIN_EDGES)
    return counts / len(scores)


Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class HeldOut:
    """Each training bag's probability from models that did not see its patient.

    Args:
        probabilities: (n_bags,), 0 to 1, after ``n_epochs`` epochs.
        fold: (n_bags,), the fold that held the bag out.
        n_epochs: the chosen number of epochs; 1 for aggregators without epochs.
        loss_by_epoch: (epochs,), the mean held-out log loss in nats.
    """

    probabilities: np.ndarray
    fold: np.ndarray
    n_epochs: int
    loss_by_epoch: np.ndarray


def cross_validate(bags: Sequence[TrainingBag], settings: FitMilConfig, listener: Listener) -> HeldOut:
    """Hold every bag out once. If the aggregator does so in a single fit, use its result, else `over_folds`.

    Raises:
        FeatureFileError: a label has fewer than two patients.
        SettingsError: there is no such aggregator, or it does not accept ``settings.options``.
    """
    require_two_patients(bags)
    if find_aggregator(settings.aggregator).holds_out:

        def fit_once(_: int, check: Callable[[], None]) -> CrossFittedBags | None:
            *_others, (model, _standardise) = training_epochs(bags, settings, 1, member_seed(settings, 0))
            return model.cross_fitted

        (cross_fitted,) = fit_in_parallel([0], fit_once, settings.workers, listener, "cross-validating")
        if (held_out := from_cross_fitted(cross_fitted)) is not None:
            return held_out
    return over_folds(bags, settings, listener)


def over_folds(bags: Sequence[TrainingBag], settings: FitMilConfig, listener: Listener) -> HeldOut:
    """Train on all folds but one, for every fold and seed of the ensemble, and assess the held-out bags every epoch.

    The chosen number of epochs minimises the held-out log loss of the averaged ensemble. Raises `FeatureFileError` if a
    label has fewer than two patients.
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
    results = fit_in_parallel(jobs, fit, settings.workers, listener, "cross-validating")
    by_epoch = np.zeros((len(results[0]), len(bags)))
    for (fold, _), probabilities in zip(jobs, results, strict=True):
        by_epoch[:, folds == fold] += np.array(probabilities) / members
    loss = _log_loss(by_epoch, labels)
    best = int(loss.argmin())
    return HeldOut(by_epoch[best], folds, best + 1, loss)


def from_cross_fitted(bags: CrossFittedBags | None) -> HeldOut | None:
    """The result for bags that an aggregator held out itself. None if a patient is in two of its folds.

    The scorer and the logistic curve were fitted to other patients' bags. Only the standardisation of the features used
    all cells.
    """
    if bags is None or bags.fold is None or bags.held_out_probabilities is None:
        return None
    loss = _log_loss(bags.held_out_probabilities[None], bags.labels)
    return HeldOut(bags.held_out_probabilities, bags.fold, 1, loss)


def _log_loss(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    clipped = np.clip(probabilities, 1e-7, 1 - 1e-7)
    loss: np.ndarray = -np.where(labels == 1, np.log(clipped), np.log1p(-clipped)).mean(axis=1)
    return loss


def require_two_patients(bags: Sequence[TrainingBag]) -> int:
    """The number of patients of the rarer label. Raises `FeatureFileError` if it is below two."""
    fewest = min(len({bag.patient for bag in bags if bag.label == label}) for label in (0, 1))
    if fewest < 2:
        raise FeatureFileError(
            f"cross-validation needs at least two patients of each label among the training bags; one label has {fewest}. "
            "Make more bags."
        )
    return fewest


def assign_folds(bags: Sequence[TrainingBag], settings: FitMilConfig) -> np.ndarray:
    """The fold of each bag, (n_bags,): no patient in two folds, both labels in every fold.

    Raises `FeatureFileError` if a label has fewer than two patients.
    """
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
    """The seed of one member of the ensemble."""
    return settings.seed * 1_000 + member


def n_members(kind: type[Aggregator], settings: FitMilConfig) -> int:
    """The number of models that are averaged."""
    return settings.ensemble if kind.averaged else 1


def training_epochs(
    bags: Sequence[TrainingBag],
    settings: FitMilConfig,
    epochs: int,
    seed: int,
    standardise: Standardiser | None = None,
) -> Iterator[tuple[Aggregator, Standardiser]]:
    """Fit the chosen aggregator to ``bags``. Yields it with its standardiser after every epoch, or once without epochs.

    Args:
        bags: of both labels, not standardised.
        settings: the aggregator, its settings and those that all aggregators share.
        epochs: number of epochs.
        seed: the seed of every random choice.
        standardise: the standardiser of these bags, if it was computed before.

    Raises:
        SettingsError: there is no such aggregator, or it does not accept ``settings.options``.
    """
    kind, options = find_aggregator(settings.aggregator), own_config(settings.aggregator, settings.options)
    standardise = standardise or Standardiser.of(bags)
    inputs = [replace(bag, standardise=standardise) for bag in bags]
    for aggregator in kind.fit(inputs, settings, options, epochs, seed):
        yield aggregator, standardise


def positive_probability(model: Aggregator, values: Tensor) -> float:
    """The probability of the positive class for one standardised bag, (N, D)."""
    # Attention scores need no extra computation. Evidence would be computed for every instance and discarded.
    kind = InstanceScore.ATTENTION if InstanceScore.ATTENTION in model.meaning else InstanceScore.EVIDENCE
    return model.assess(values, kind)[0]


class StoppedError(Exception):
    """Raised to stop a fit, because another one failed or the user interrupted."""


def fit_in_parallel(
    jobs: Sequence[Job],
    fit: Callable[[Job, Callable[[], None]], Result],
    workers: int,
    listener: Listener,
    description: str,
) -> list[Result]:
    """Run ``fit(job, check)`` for every job in threads, and return the results in the jobs' order.

    Threads are used instead of processes. PyTorch releases the interpreter lock while it computes, the bags are in memory
    once, and nothing has to start. Each fit uses a single PyTorch thread, so the result does not depend on ``workers``.

    Args:
        jobs: what to fit.
        fit: fits one job. A long fit calls ``check`` from time to time, which raises `StoppedError` if another fit failed.
        workers: number of jobs at a time; 0: one per core.
        listener: shows progress.
        description: of the work, for the listener.
    """
    stop = Event()

    def check() -> None:
        if stop.is_set():
            raise StoppedError

    count = min(len(jobs), workers or usable_cores())
    with one_thread(), ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = [pool.submit(fit, job, check) for job in jobs]
        try:
            for future in listener.track(as_completed(futures), description, total=len(jobs), unit="fits"):
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]


@contextmanager
def one_thread() -> Iterator[None]:
    """Run PyTorch, BLAS and OpenMP on one thread. Other fits use the other cores, and a bag is too small to split."""
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)
