"""Reading a bag through attention in one pass: the softmax over the bag is kept up to date as its blocks come in."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from cytomil.mil.aggregators.base import ATTENTION_MEANING, EVIDENCE_MEANING, attention_scores, odds
from cytomil.mil.aggregators.learned import LearnedAggregator
from cytomil.mil.gathered import Gathered
from cytomil.settings import InstanceScore


class AttentionAggregator(LearnedAggregator):
    """An aggregator that pools hidden instances by attention, one pooled vector a branch, and classifies what it pooled."""

    meaning: ClassVar[Mapping[InstanceScore, str]] = {
        InstanceScore.EVIDENCE: EVIDENCE_MEANING,
        InstanceScore.ATTENTION: ATTENTION_MEANING,
    }

    @abstractmethod
    def attend(self, instances: Tensor) -> tuple[Tensor, Tensor]:
        """Instances (N, D) → hidden (N, H), attention logits (N, branches)."""

    @abstractmethod
    def log_odds(self, pooled: Tensor) -> Tensor:
        """Pooled bags (B, branches, H) → log odds of the positive class (B,)."""

    def log_odds_alone(self, hidden: Tensor) -> Tensor:
        """The log odds that a bag of one instance alone is positive, from its hidden (N, H) → (N,).

        Such a bag gives all attention to its one instance. Attention says how an instance is weighed, not which way it
        points; its odds alone say which way.
        """
        return self.log_odds(hidden.unsqueeze(1).expand(-1, self.branches, -1))

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

    def add(self, instances: Tensor) -> None:
        """See `Reading`."""
        hidden, raw = self._model.attend(instances)
        greatest = torch.maximum(self._greatest, raw.amax(dim=0))
        kept = (self._greatest - greatest).exp()
        weights = (raw - greatest).exp()
        self._pooled = kept.unsqueeze(1) * self._pooled + weights.T @ hidden
        self._weight = kept * self._weight + weights.sum(dim=0)
        self._greatest = greatest
        evidence = self._kind is InstanceScore.EVIDENCE
        self._scores.add(self._model.log_odds_alone(hidden) if evidence else raw[:, -1])

    def result(self) -> tuple[float, Tensor]:
        """See `Reading`."""
        pooled = self._pooled / self._weight.unsqueeze(1)
        probability = float(self._model.log_odds(pooled.unsqueeze(0)).sigmoid())
        logits = self._scores.all()
        return probability, odds(logits) if self._kind is InstanceScore.EVIDENCE else attention_scores(logits)
