"""Reading a bag through attention in one pass: the softmax over the bag is kept up to date as its blocks come in."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from cytomil.mil.aggregators.base import ATTENTION_MEANING, EVIDENCE_MEANING, attention_scores, odds
from cytomil.mil.aggregators.learned import LearnedAggregator
from cytomil.mil.config import InstanceScore
from cytomil.mil.gathered import Gathered


class AttentionAggregator(LearnedAggregator):
    """An aggregator that pools hidden instances by attention, one pooled vector a branch, and classifies what it pooled."""

    meaning: ClassVar[Mapping[InstanceScore, str]] = {
        InstanceScore.EVIDENCE: EVIDENCE_MEANING,
        InstanceScore.ATTENTION: ATTENTION_MEANING,
    }

    @abstractmethod
    def attend(self, instances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Instances (N, D) → hidden (N, H), attention logits (N, branches), marks (N, M).

        Of each mark the bag's greatest is kept for `log_odds`; M is 0 where attention is all that counts.
        """

    @abstractmethod
    def log_odds(self, pooled: Tensor, marks: Tensor) -> Tensor:
        """Pooled bags (B, branches, H) and their greatest marks (B, M) → log odds of the positive class (B,)."""

    def log_odds_alone(self, hidden: Tensor, marks: Tensor) -> Tensor:
        """The log odds that a bag of one instance alone is positive, from hidden (N, H) and marks (N, M) → (N,).

        Such a bag gives all attention to its one instance. Attention says how an instance is weighed, not which way it
        points; its odds alone say which way.
        """
        return self.log_odds(hidden.unsqueeze(1).expand(-1, self.branches, -1), marks)

    @property
    @abstractmethod
    def branches(self) -> int:
        """How many attention distributions there are over a bag; the last one is the positive class's."""

    def read(self, kind: InstanceScore) -> AttentionReading:
        """See `Aggregator.read`."""
        return AttentionReading(self, kind)


class AttentionReading:
    """Pools by a softmax whose greatest logit and denominator are corrected with every block (as flash attention does)."""

    def __init__(self, model: AttentionAggregator, kind: InstanceScore) -> None:
        self._model, self._kind = model, kind
        self._scores = Gathered()
        self._greatest = torch.full((model.branches,), -torch.inf)
        self._weight = torch.zeros(model.branches)
        self._pooled = torch.zeros(model.branches, 1)
        self._marks = torch.full((1,), -torch.inf)

    def add(self, instances: Tensor) -> None:
        """See `Reading`."""
        hidden, raw, marks = self._model.attend(instances)
        greatest = torch.maximum(self._greatest, raw.amax(dim=0))
        kept = (self._greatest - greatest).exp()
        weights = (raw - greatest).exp()
        self._pooled = kept.unsqueeze(1) * self._pooled + (weights.T.to(hidden.dtype) @ hidden).float()
        self._weight = kept * self._weight + weights.sum(dim=0)
        self._greatest = greatest
        self._marks = torch.maximum(self._marks, marks.amax(dim=0))
        evidence = self._kind is InstanceScore.EVIDENCE
        self._scores.add(self._model.log_odds_alone(hidden, marks) if evidence else raw[:, -1])

    def result(self) -> tuple[float, Tensor]:
        """See `Reading`."""
        pooled = self._pooled / self._weight.unsqueeze(1)
        probability = float(self._model.log_odds(pooled.unsqueeze(0), self._marks.unsqueeze(0)).sigmoid())
        logits = self._scores.all()
        return probability, odds(logits) if self._kind is InstanceScore.EVIDENCE else attention_scores(logits)


def most_and_least(attention: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Which of the bag's instances are attended most and least: attention (N,) → two of int64 (min(n, max(1, N // 2)),)."""
    k = min(n, max(1, len(attention) // 2))
    order = attention.detach().argsort(descending=True)
    return order[:k], order[-k:]
