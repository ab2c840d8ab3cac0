"""Scorers without epochs. They score each cell, and classify a bag by its most suspicious cells.

`OneClassScorer` learns from negative bags alone, `TwoSidedScorer` from bags of both labels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from cytomil.config import Config
from cytomil.mil.aggregators.base import DEFAULTS, Aggregator, CrossFittedBags, PooledReading, Reading, top_count
from cytomil.mil.bags import TrainingBag, spread_folds
from cytomil.mil.config import FitConfig, InstanceScore
from cytomil.threads import usable_cores

_MIN_DISTANCE = 1e-6
_MIN_SPREAD = 1e-6
_MIN_SLOPE = 0.05


class PooledScorer(Aggregator):
    """A distance per instance, at least 0, and a logistic curve from a bag's pooled distance to its probability.

    The pooled distance is the logarithm of the mean over the top fraction of instances. Several cells are pooled because
    the single farthest one is less reliable. The logistic curve is fitted to training bags, each measured by a scorer
    that did not learn from it. The curve always rises. If the training bags do not support a rise, it is nearly flat.
    Bags then keep their order, but all probabilities are close to each other.

    Args:
        in_dim: length of an instance's embedding.
        share: fraction of a bag's instances that are pooled, 0 to 1.
        config: further arguments of a subclass that determine the shapes of its buffers. They are saved as JSON.
    """

    by_epochs: ClassVar[bool] = False
    averaged: ClassVar[bool] = False
    holds_out: ClassVar[bool] = True
    unused = ("learning_rate", "weight_decay", "precision")

    slope: Tensor
    intercept: Tensor

    def __init__(self, in_dim: int, share: float, **config: Any) -> None:
        super().__init__()
        self.config = {"in_dim": in_dim, "share": share, **config}
        self.share = share
        self.register_buffer("slope", torch.ones((), dtype=torch.float64))
        self.register_buffer("intercept", torch.zeros((), dtype=torch.float64))

    @abstractmethod
    def distances(self, instances: Tensor) -> Tensor:
        """How suspicious each instance is: (N, D) → float32 (N,), at least 0."""

    def calibrate(self, pooled: np.ndarray, labels: np.ndarray, fold: np.ndarray | None = None) -> None:
        """Fit the logistic curve to bags' pooled distances and labels, both (n_bags,); ``fold`` as in `CrossFittedBags`."""
        slope, intercept = _fit_curve(pooled, labels)
        self.slope.fill_(slope)
        self.intercept.fill_(intercept)
        probabilities, held_out = self._curve(torch.from_numpy(pooled)).numpy(), None
        if fold is not None:
            held_out = np.zeros(len(pooled))
            for number in np.unique(fold):
                held = fold == number
                slope, intercept = _fit_curve(pooled[~held], labels[~held])
                held_out[held] = torch.from_numpy(slope * pooled[held] + intercept).sigmoid().numpy()
        self.cross_fitted = CrossFittedBags(probabilities, labels, fold, held_out)

    def pool(self, distances: Tensor) -> float:
        """The log of the mean of a bag's top distances, (N,) → a number."""
        top = distances.topk(top_count(len(distances), self.share)).values
        return float(top.double().mean().clamp(min=_MIN_DISTANCE).log())

    def read(self, kind: InstanceScore) -> Reading:
        """See `Aggregator.read`."""
        return PooledReading(self._positive_distances, self._probability, lambda distances: distances)

    def _positive_distances(self, instances: Tensor) -> Tensor:
        return self.distances(instances).clamp(min=_MIN_DISTANCE)

    def _probability(self, distances: Tensor) -> float:
        return float(self._curve(self.pool(distances)))

    def _curve(self, pooled: Tensor | float) -> Tensor:
        return (self.slope * pooled + self.intercept).sigmoid()


class OneClassScorer(PooledScorer):
    """A distance from the cells of negative training bags. Positive bags are used only to fit the logistic curve."""

    @classmethod
    @abstractmethod
    def learn(cls, cells: Tensor, settings: FitConfig = DEFAULTS, options: Config | None = None, seed: int = 0) -> Self:
        """Learn from the cells of negative bags, (N ≥ 2, D) standardised. Arguments as in `Aggregator.fit`."""

    @classmethod
    def fit(
        cls,
        bags: Sequence[TrainingBag],
        settings: FitConfig = DEFAULTS,
        options: Config | None = None,
        epochs: int = 1,
        seed: int = 0,
    ) -> Iterator[Self]:
        """See `Aggregator.fit`; ``epochs`` is ignored."""
        options = options or cls.Config()
        negatives = [bag for bag in bags if bag.label == 0]
        model = cls.learn(torch.cat([bag.values for bag in negatives]), settings, options, seed).eval()
        model.calibrate(*cls._cross_fitted(bags, negatives, settings, options, seed))
        yield model

    @classmethod
    def _cross_fitted(
        cls,
        bags: Sequence[TrainingBag],
        negatives: Sequence[TrainingBag],
        settings: FitConfig,
        options: Config,
        seed: int,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Pooled distance, label and fold of each bag, by scorers that did not learn from its patient's negative cells.

        Bags of patients without a negative bag are spread over the same scorers. A scorer that learnt from fewer cells
        measures slightly longer distances. This affects both labels equally.
        """
        patients = sorted({bag.patient for bag in negatives})
        if len(patients) == 1:
            return cls._halved(bags, negatives, settings, options, seed)
        n_folds = min(settings.folds, len(patients))
        fold_of = {patient: i % n_folds for i, patient in enumerate(patients)}
        others = sorted({bag.patient for bag in bags} - set(patients))
        fold_of |= {patient: i % n_folds for i, patient in enumerate(others)}
        fold = np.array([fold_of[bag.patient] for bag in bags])
        pooled = np.zeros(len(bags))
        for number in range(n_folds):
            cells = torch.cat([bag.values for bag in negatives if fold_of[bag.patient] != number])
            held = np.flatnonzero(fold == number)
            scorer = cls.learn(cells, settings, options, seed)
            pooled[held] = measure(scorer, (bags[i].values for i in held.tolist()))
        labels = np.array([bag.label for bag in bags])
        # A curve can be fitted without a fold only if both labels occur outside it.
        has_both_labels = all(len(set(labels[fold != number])) == 2 for number in range(n_folds))
        return pooled, labels, fold if has_both_labels else None

    @classmethod
    def _halved(
        cls,
        bags: Sequence[TrainingBag],
        negatives: Sequence[TrainingBag],
        settings: FitConfig,
        options: Config,
        seed: int,
    ) -> tuple[np.ndarray, np.ndarray, None]:
        """As `_cross_fitted`, if all negative bags belong to one patient. Every other cell is held out instead."""
        cells = torch.cat([bag.values for bag in negatives])
        scorer = cls.learn(cells[::2], settings, options, seed)
        held = [bag.values if bag.label else bag.values[1::2] for bag in bags]
        scored = [(values, bag.label) for values, bag in zip(held, bags, strict=True) if len(values)]
        labels = np.array([label for _, label in scored])
        return np.array(measure(scorer, (values for values, _ in scored))), labels, None


class TwoSidedScorer(PooledScorer):
    """A suspicion score per instance, learnt from bags of both labels. The logistic curve is fitted to held-out bags."""

    @classmethod
    @abstractmethod
    def learn_from(
        cls,
        bags: Sequence[TrainingBag],
        settings: FitConfig = DEFAULTS,
        options: Config | None = None,
        seed: int = 0,
    ) -> Self:
        """Learn from standardised bags of both labels. Arguments as in `Aggregator.fit`."""

    @classmethod
    def fit(
        cls,
        bags: Sequence[TrainingBag],
        settings: FitConfig = DEFAULTS,
        options: Config | None = None,
        epochs: int = 1,
        seed: int = 0,
    ) -> Iterator[Self]:
        """See `Aggregator.fit`; ``epochs`` is ignored."""
        own = options or cls.Config()
        fold, by_patient = spread_folds(bags, settings.folds)
        sets = [
            [bag for bag, other in zip(bags, fold, strict=True) if other != number] or bags
            for number in range(fold.max() + 1)
        ]
        # PyTorch releases the interpreter lock while it computes. One thread per fit: the result does not depend on cores.
        with ThreadPoolExecutor(
            settings.workers or usable_cores(), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            model, *scorers = pool.map(
                lambda training: cls.learn_from(training, settings, own, seed).eval(), [bags, *sets]
            )
        pooled = np.zeros(len(bags))
        for number, scorer in enumerate(scorers):
            held = np.flatnonzero(fold == number)
            pooled[held] = measure(scorer, (bags[i].values for i in held.tolist()))
        model.calibrate(pooled, np.array([bag.label for bag in bags]), fold if by_patient else None)
        yield model


def measure(scorer: PooledScorer, bags: Iterable[Tensor]) -> list[float]:
    """The pooled distance of each bag, (n, D), that ``scorer`` has not learnt from."""
    return [scorer.pool(scorer.distances(values)) for values in bags]


def subsample(cells: Tensor, max_cells: int, seed: int) -> Tensor:
    """Draw up to ``max_cells`` of the cells without replacement, (N, D) → (≤ max_cells, D)."""
    if len(cells) <= max_cells:
        return cells
    generator = torch.Generator().manual_seed(seed)
    return cells[torch.randperm(len(cells), generator=generator)[:max_cells]]


def _fit_curve(pooled: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Slope and intercept of the rising logistic curve."""
    from sklearn.linear_model import LogisticRegression

    # Scaled by their spread, so that the slight regularisation does not depend on the unit of the distances.
    centre, spread = float(pooled.mean()), max(float(pooled.std()), _MIN_SPREAD)
    curve = LogisticRegression().fit((pooled[:, None] - centre) / spread, labels)
    slope = max(float(curve.coef_[0, 0]), _MIN_SLOPE) / spread
    return slope, float(curve.intercept_[0]) - slope * centre
