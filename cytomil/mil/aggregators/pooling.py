"""The plainest aggregators: a linear score an instance, pooled by its mean, its maximum or the mean of its top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cytomil.mil.aggregators.base import PooledReading, odds, top_count
from cytomil.mil.aggregators.learned import LearnedAggregator
from cytomil.mil.bags import TrainingBag
from cytomil.mil.config import FitMilConfig, InstanceScore


class TopPooling(LearnedAggregator):
    """Logistic regression on the mean of a bag's greatest instance logits, the instances' logits being linear.

    The bag's logit is the mean over the top ``share`` of its instances, at least one. With a share of 1 that is mean
    pooling, and equals the logistic regression of the bag's mean embedding; with one of 0 it is max pooling.

    Args:
        in_dim: length of an instance's embedding.
        share: share of the instances pooled, 0 (one instance) to 1 (all).
    """

    def __init__(self, in_dim: int, share: float) -> None:
        super().__init__()
        self.config = {"in_dim": in_dim, "share": share}
        self.share = share
        self.linear = nn.Linear(in_dim, 1)

    @classmethod
    def untrained(cls, bags: Sequence[TrainingBag], settings: FitMilConfig, seed: int) -> Self:
        """See `LearnedAggregator`."""
        return cls(bags[0].dim, settings.top_share)

    def instance_logits(self, instances: Tensor) -> Tensor:
        """Log odds of each instance, (N, D) → (N,)."""
        return self.linear(instances).squeeze(1)

    def pool(self, logits: Tensor) -> Tensor:
        """Instance logits (N,) → the bag's ()."""
        return logits.topk(top_count(len(logits), self.share)).values.mean()

    def loss(self, instances: Tensor, label: Tensor, settings: FitMilConfig, generator: torch.Generator) -> Tensor:
        """Cross entropy of the bag's label."""
        return F.binary_cross_entropy_with_logits(self.pool(self.instance_logits(instances)), label.float())

    def read(self, kind: InstanceScore) -> PooledReading:
        """An instance's score is the odds of a bag of that instance alone."""
        return PooledReading(self.instance_logits, lambda logits: float(self.pool(logits).sigmoid()), odds)


class MeanPooling(TopPooling):
    """`TopPooling` over all instances."""

    @classmethod
    def untrained(cls, bags: Sequence[TrainingBag], settings: FitMilConfig, seed: int) -> Self:
        """See `LearnedAggregator`."""
        return cls(bags[0].dim, 1.0)


class MaxPooling(TopPooling):
    """`TopPooling` over the one greatest instance."""

    @classmethod
    def untrained(cls, bags: Sequence[TrainingBag], settings: FitMilConfig, seed: int) -> Self:
        """See `LearnedAggregator`."""
        return cls(bags[0].dim, 0.0)
