"""What scorers share that measure each cell by itself, without epochs, and call a bag by its most suspicious cells."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from cytomil.mil.aggregators.base import Aggregator, JudgedBags, PooledReading, Reading, top_count
from cytomil.mil.config import InstanceScore

_LEAST = 1e-6
_LEAST_SLOPE = 0.05


class PooledScorer(Aggregator):
    """A distance an instance, above 0, and a logistic curve from bags' distances to probability.

    A bag's pooled distance is the logarithm of the mean over its top ``share`` of instances: the single farthest cell is
    a worse witness than some together. The logistic curve is fitted to pooled distances of the training bags, none of
    which had a part in the distances that it was measured by. It always rises: where the training bags show no such thing,
    chance alone would turn it round, and then it rises next to nothing, so that bags keep their order and no call looks sure.

    ``config`` holds whatever fitting chose beside the buffers; a subclass's constructor takes it and makes buffers of
    that shape.
    """

    by_epochs: ClassVar[bool] = False
    averaged: ClassVar[bool] = False
    holds_out: ClassVar[bool] = True

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
        """Fit the logistic curve to bags' pooled distances and labels, both (n_bags,); ``fold`` as in `JudgedBags`."""
        slope, intercept = _fit_curve(pooled, labels)
        self.slope.fill_(slope)
        self.intercept.fill_(intercept)
        probabilities, apart = self._curve(torch.from_numpy(pooled)).numpy(), None
        if fold is not None:
            apart = np.zeros(len(pooled))
            for number in np.unique(fold):
                held = fold == number
                slope, intercept = _fit_curve(pooled[~held], labels[~held])
                apart[held] = torch.from_numpy(slope * pooled[held] + intercept).sigmoid().numpy()
        self.judged = JudgedBags(probabilities, labels, fold, apart)

    def pool(self, distances: Tensor) -> float:
        """The log of the mean of a bag's top distances, (N,) → a number."""
        top = distances.topk(top_count(len(distances), self.share)).values
        return float(top.double().mean().clamp(min=_LEAST).log())

    def read(self, kind: InstanceScore) -> Reading:
        """See `Aggregator.read`."""
        return PooledReading(self._positive_distances, self._probability, lambda distances: distances)

    def _positive_distances(self, instances: Tensor) -> Tensor:
        return self.distances(instances).clamp(min=_LEAST)

    def _probability(self, distances: Tensor) -> float:
        return float(self._curve(self.pool(distances)))

    def _curve(self, pooled: Tensor | float) -> Tensor:
        return (self.slope * pooled + self.intercept).sigmoid()


def _fit_curve(pooled: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Slope and intercept of the logistic curve, which rises."""
    from sklearn.linear_model import LogisticRegression

    # In units of their spread, so that the fit's slight shrinking does not depend on the distances' scale.
    centre, spread = float(pooled.mean()), max(float(pooled.std()), _LEAST)
    curve = LogisticRegression().fit((pooled[:, None] - centre) / spread, labels)
    slope = max(float(curve.coef_[0, 0]), _LEAST_SLOPE) / spread
    return slope, float(curve.intercept_[0]) - slope * centre


def measure(scorer: PooledScorer, bags: Iterable[Tensor]) -> list[float]:
    """The pooled distance of each of the bags, (n, D), that ``scorer`` has not learnt from."""
    return [scorer.pool(scorer.distances(values)) for values in bags]


def subsample(cells: Tensor, most: int, seed: int) -> Tensor:
    """At most ``most`` of the cells, (N, D) → (≤ most, D), drawn without replacement."""
    if len(cells) <= most:
        return cells
    generator = torch.Generator().manual_seed(seed)
    return cells[torch.randperm(len(cells), generator=generator)[:most]]
