"""Whether a cell has more company in positive bags than in negative ones: a ratio of nearest-neighbour distances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from cytomil.mil.aggregators.neighbours import distance_ratio
from cytomil.mil.aggregators.pooled_scorer import subsample
from cytomil.mil.aggregators.two_sided import TwoSidedScorer
from cytomil.mil.bags import TrainingBag
from cytomil.mil.config import FitMilConfig, InstanceScore

_MOST_CELLS = 10_000


class DensityRatio(TwoSidedScorer):
    """The distance to the tenth nearest cell of negative bags, over that to the tenth nearest cell of positive ones.

    It stands for the ratio of the two densities there (see `distance_ratio`), which orders cells by the probability of being
    a witness, where normal cells are alike in either kind of bag. An odd cell is far from both, and so is not suspicious by
    being odd. Directions of the embeddings are compared.
    """

    meaning: ClassVar = {
        InstanceScore.EVIDENCE: "× as much closer to diseased than to normal training slides' cells as their average cell"
    }

    negatives: Tensor
    positives: Tensor

    def __init__(self, in_dim: int, share: float, n_negatives: int, n_positives: int) -> None:
        super().__init__(in_dim, share, n_negatives=n_negatives, n_positives=n_positives)
        self.register_buffer("negatives", torch.zeros(n_negatives, in_dim))
        self.register_buffer("positives", torch.zeros(n_positives, in_dim))

    @classmethod
    def learn_from(cls, bags: Sequence[TrainingBag], settings: FitMilConfig, seed: int) -> Self:
        """Remember the bags' cells, at most 10,000 drawn ones of each label."""
        sides = [torch.cat([bag.values for bag in bags if bag.label == label]) for label in (0, 1)]
        negatives, positives = (subsample(side, _MOST_CELLS, seed) for side in sides)
        model = cls(negatives.shape[1], settings.top_share, len(negatives), len(positives))
        model.negatives.copy_(F.normalize(negatives, dim=1))
        model.positives.copy_(F.normalize(positives, dim=1))
        return model

    def distances(self, instances: Tensor) -> Tensor:
        """See `PooledScorer`: here the ratio, 1 where a cell is as close to either."""
        return distance_ratio(F.normalize(instances, dim=1), self.negatives, self.positives)
