"""The simplest aggregators: one linear score per instance, pooled by mean, by maximum or by the mean of the top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cytomil.config import Config
from cytomil.mil.aggregators.base import PooledReading, odds, top_count
from cytomil.mil.aggregators.learned import LearnedAggregator
from cytomil.mil.bags import TrainingBag
from cytomil.mil.config import FitConfig, InstanceScore


class TopPooling(LearnedAggregator):
    """Logistic regression on the mean of a bag's highest instance logits, which are linear in the embeddings.

    The bag's logit is the mean over the top fraction ``share`` of its instances, at least one. A fraction of 1 is mean
    pooling, and equals logistic regression on the bag's mean embedding; a fraction of 0 is max pooling.

    Args:
        in_dim: length of an instance's embedding.
        share: fraction of the instances that are pooled, 0 (one instance) to 1 (all).
    """

    def __init__(self, in_dim: int, share: float) -> None:
        super().__init__()
        self.config = {"in_dim": in_dim, "share": share}
        self.share = share
        self.linear = nn.Linear(in_dim, 1)

    @classmethod
    def untrained(cls, bags: Sequence[TrainingBag], settings: FitConfig, options: Config, seed: int) -> Self:
        """See `LearnedAggregator`."""
        return cls(bags[0].dim, settings.top_share)

    def instance_logits(self, instances: Tensor) -> Tensor:
        """Log odds of each instance, (N, D) → (N,)."""
        return self.linear(instances).squeeze(1)

    def pool(self, logits: Tensor) -> Tensor:
        """Instance logits (N,) → the bag's logit ()."""
        return logits.topk(top_count(len(logits), self.share)).values.mean()

    def loss(self, instances: Tensor, label: Tensor, generator: torch.Generator) -> Tensor:
        """Cross entropy of the bag's label."""
        return F.binary_cross_entropy_with_logits(self.pool(self.instance_logits(instances)), label.float())

    def read(self, kind: InstanceScore) -> PooledReading:
        """See `Aggregator.read`. An instance's score is the odds of a bag of that instance alone."""
        return PooledReading(self.instance_logits, lambda logits: float(self.pool(logits).sigmoid()), odds)


class MeanPooling(TopPooling):
    """`TopPooling` over all instances."""

    @classmethod
    def untrained(cls, bags: Sequence[TrainingBag], settings: FitConfig, options: Config, seed: int) -> Self:
        """See `LearnedAggregator`."""
        return cls(bags[0].dim, 1.0)


class MaxPooling(TopPooling):
    """`TopPooling` over the instance with the highest logit."""

    @classmethod
    def untrained(cls, bags: Sequence[TrainingBag], settings: FitConfig, options: Config, seed: int) -> Self:
        """See `LearnedAggregator`."""
        return cls(bags[0].dim, 0.0)
