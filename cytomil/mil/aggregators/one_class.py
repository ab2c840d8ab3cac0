"""What one-class scorers share: they learn what cells of negative slides look like, and call a bag by its farthest cells."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from cytomil.mil.aggregators.base import Aggregator, PooledReading, top_count
from cytomil.mil.bags import TrainingBag
from cytomil.settings import FitMilSettings, InstanceScore

_INNER_FOLDS = 4
_LEAST = 1e-6


class OneClassScorer(Aggregator):
    """A distance from the negative training slides' cells, above 0, and a logistic curve from bags' distances to probability.

    A bag's pooled distance is the logarithm of the mean over its top ``share`` of instances: the single farthest cell is
    a worse witness than some together. The logistic curve is fitted to pooled distances of the training bags, none of
    which had a part in the distances that it was measured by.

    ``config`` holds whatever ``learn`` chose beside the buffers; a subclass's constructor takes it and makes buffers of
    that shape.
    """

    by_epochs: ClassVar[bool] = False
    averaged: ClassVar[bool] = False

    slope: Tensor
    intercept: Tensor

    def __init__(self, in_dim: int, share: float, **config: Any) -> None:
        super().__init__()
        self.config = {"in_dim": in_dim, "share": share, **config}
        self.share = share
        self.register_buffer("slope", torch.ones((), dtype=torch.float64))
        self.register_buffer("intercept", torch.zeros((), dtype=torch.float64))

    @classmethod
    @abstractmethod
    def learn(cls, cells: Tensor, settings: FitMilSettings, seed: int) -> Self:
        """Learn what the negative slides' cells, (N ≥ 2, D) standardised, look like."""

    @abstractmethod
    def distances(self, instances: Tensor) -> Tensor:
        """How far each instance lies from what was learnt: (N, D) → float32 (N,), at least 0."""

    @classmethod
    def fit(cls, bags: Sequence[TrainingBag], settings: FitMilSettings, epochs: int, seed: int) -> Iterator[Self]:
        """See `Aggregator.fit`; ``epochs`` do not matter."""
        negatives = [bag for bag in bags if bag.label == 0]
        model = cls.learn(torch.cat([bag.values for bag in negatives]), settings, seed).eval()
        pooled, labels = cls._cross_fitted(bags, negatives, settings, seed)
        model.calibrate(pooled, labels)
        yield model

    def calibrate(self, pooled: np.ndarray, labels: np.ndarray) -> None:
        """Fit the logistic curve to bags' pooled distances and labels, both (n_bags,)."""
        from sklearn.linear_model import LogisticRegression

        # In units of their spread, so that the fit's slight shrinking does not depend on the distances' scale.
        centre, spread = pooled.mean(), max(float(pooled.std()), _LEAST)
        curve = LogisticRegression().fit((pooled[:, None] - centre) / spread, labels)
        slope = float(curve.coef_[0, 0]) / spread
        self.slope.fill_(slope)
        self.intercept.fill_(float(curve.intercept_[0]) - slope * centre)

    def pool(self, distances: Tensor) -> float:
        """The log of the mean of a bag's top distances, (N,) → a number."""
        top = distances.topk(top_count(len(distances), self.share)).values
        return float(top.double().mean().clamp(min=_LEAST).log())

    def read(self, kind: InstanceScore) -> PooledReading:
        """See `Aggregator.read`."""
        return PooledReading(self._positive_distances, self._probability, lambda distances: distances)

    def _positive_distances(self, instances: Tensor) -> Tensor:
        return self.distances(instances).clamp(min=_LEAST)

    def _probability(self, distances: Tensor) -> float:
        return float((self.slope * self.pool(distances) + self.intercept).sigmoid())

    @classmethod
    def _cross_fitted(
        cls, bags: Sequence[TrainingBag], negatives: Sequence[TrainingBag], settings: FitMilSettings, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pooled distance and label of each bag, measured by scorers that did not see its patient's negative cells.

        Bags of patients without a negative bag are spread over the same scorers: one that has seen fewer cells than another
        measures somewhat longer distances, for both labels alike.
        """
        patients = sorted({bag.patient for bag in negatives})
        if len(patients) == 1:
            return cls._halved(bags, negatives, settings, seed)
        n_folds = min(_INNER_FOLDS, len(patients))
        fold_of = {patient: i % n_folds for i, patient in enumerate(patients)}
        others = sorted({bag.patient for bag in bags} - set(patients))
        fold_of |= {patient: i % n_folds for i, patient in enumerate(others)}
        pooled, labels = [], []
        for fold in range(n_folds):
            kept = torch.cat([bag.values for bag in negatives if fold_of[bag.patient] != fold])
            scorer = cls.learn(kept, settings, seed)
            for bag in bags:
                if fold_of[bag.patient] == fold:
                    pooled.append(scorer.pool(scorer.distances(bag.values)))
                    labels.append(bag.label)
        return np.array(pooled), np.array(labels)

    @classmethod
    def _halved(
        cls, bags: Sequence[TrainingBag], negatives: Sequence[TrainingBag], settings: FitMilSettings, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same where all negative bags are one patient's: every other cell of theirs is held out instead."""
        cells = torch.cat([bag.values for bag in negatives])
        scorer = cls.learn(cells[::2], settings, seed)
        held = [bag.values if bag.label else bag.values[1::2] for bag in bags]
        some = [(values, bag.label) for values, bag in zip(held, bags, strict=True) if len(values)]
        pooled = [scorer.pool(scorer.distances(values)) for values, _ in some]
        return np.array(pooled), np.array([label for _, label in some])


def subsample(cells: Tensor, most: int, seed: int) -> Tensor:
    """At most ``most`` of the cells, (N, D) → (≤ most, D), drawn without replacement."""
    if len(cells) <= most:
        return cells
    generator = torch.Generator().manual_seed(seed)
    return cells[torch.randperm(len(cells), generator=generator)[:most]]
