"""Aggregators trained by gradient descent, one bag per step, and those that pool by attention."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from threading import Lock
from typing import ClassVar, Self

import torch
from torch import Tensor

from cytomil.config import Config
from cytomil.mil.aggregators.base import (
    ATTENTION_MEANING,
    DEFAULTS,
    EVIDENCE_MEANING,
    Aggregator,
    Gathered,
    attention_scores,
    odds,
)
from cytomil.mil.bags import TrainingBag
from cytomil.mil.config import FitConfig, InstanceScore

_SEEDING = Lock()


class LearnedAggregator(Aggregator):
    """An aggregator with a loss per bag. Adam trains it on the bags in random order."""

    @classmethod
    @abstractmethod
    def untrained(cls, bags: Sequence[TrainingBag], settings: FitConfig, options: Config, seed: int) -> Self:
        """A new model. Its weights are drawn from PyTorch's global generator, which the caller has seeded.

        ``options`` is an instance of ``cls.Config``. The model must keep the options that ``loss`` needs.
        """

    @abstractmethod
    def loss(self, instances: Tensor, label: Tensor, generator: torch.Generator) -> Tensor:
        """The loss () of one bag, (N ≥ 1, D), with its label, int64 (). Random choices come from ``generator``."""

    @classmethod
    def fit(
        cls,
        bags: Sequence[TrainingBag],
        settings: FitConfig = DEFAULTS,
        options: Config | None = None,
        epochs: int = 1,
        seed: int = 0,
    ) -> Iterator[Self]:
        """See `Aggregator.fit`."""
        dtype = cls.fitted_in(settings)
        inputs = [(bag.values.to(dtype), torch.tensor(bag.label)) for bag in bags]
        generator = torch.Generator().manual_seed(seed)
        with _SEEDING:  # fits run in parallel threads, and all layers draw their weights from the same global generator
            torch.manual_seed(seed)
            model = cls.untrained(bags, settings, options or cls.Config(), seed)
        optimizer = torch.optim.Adam(
            model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        for _ in range(epochs):
            model.train()
            for i in torch.randperm(len(inputs), generator=generator).tolist():
                optimizer.zero_grad(set_to_none=True)
                values, label = inputs[i]
                model.loss(values, label, generator).backward()
                optimizer.step()
            yield model.eval()


class AttentionAggregator(LearnedAggregator):
    """Pools hidden instances by attention, one pooled vector per branch, and classifies the pooled vectors.

    A branch is one attention distribution over the bag.
    """

    meaning: ClassVar[Mapping[InstanceScore, str]] = {
        InstanceScore.EVIDENCE: EVIDENCE_MEANING,
        InstanceScore.ATTENTION: ATTENTION_MEANING,
    }

    @abstractmethod
    def attend(self, instances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Instances (N, D) → hidden (N, H), attention logits (N, branches), marks (N, M).

        `log_odds` also receives the bag's maximum of each mark. M is 0 if only attention matters.
        """

    @abstractmethod
    def log_odds(self, pooled: Tensor, marks: Tensor) -> Tensor:
        """Pooled bags (B, branches, H) and their maximum marks (B, M) → log odds of the positive class (B,)."""

    def log_odds_alone(self, hidden: Tensor, marks: Tensor) -> Tensor:
        """Log odds that a bag of one instance alone is positive: hidden (N, H), marks (N, M) → (N,).

        In such a bag, the only instance gets all the attention. Attention measures the weight of an instance, but not the
        class that it supports. The odds of the instance alone show the class.
        """
        return self.log_odds(hidden.unsqueeze(1).expand(-1, self.branches, -1), marks)

    @property
    @abstractmethod
    def branches(self) -> int:
        """The number of attention distributions over a bag; the last one belongs to the positive class."""

    def read(self, kind: InstanceScore) -> AttentionReading:
        """See `Aggregator.read`."""
        return AttentionReading(self, kind)


class AttentionReading:
    """Pools by a running softmax: each block corrects the maximum logit and the denominator, as in flash attention."""

    def __init__(self, model: AttentionAggregator, kind: InstanceScore) -> None:
        self._model, self._kind = model, kind
        self._scores = Gathered()
        self._max = torch.full((model.branches,), -torch.inf)
        self._weight = torch.zeros(model.branches)
        self._pooled = torch.zeros(model.branches, 1)
        self._marks = torch.full((1,), -torch.inf)

    def add(self, instances: Tensor) -> None:
        """See `Reading`."""
        hidden, raw, marks = self._model.attend(instances)
        new_max = torch.maximum(self._max, raw.amax(dim=0))
        kept = (self._max - new_max).exp()
        weights = (raw - new_max).exp()
        self._pooled = kept.unsqueeze(1) * self._pooled + (weights.T.to(hidden.dtype) @ hidden).float()
        self._weight = kept * self._weight + weights.sum(dim=0)
        self._max = new_max
        self._marks = torch.maximum(self._marks, marks.amax(dim=0))
        evidence = self._kind is InstanceScore.EVIDENCE
        self._scores.add(self._model.log_odds_alone(hidden, marks) if evidence else raw[:, -1])

    def result(self) -> tuple[float, Tensor]:
        """See `Reading`."""
        pooled = self._pooled / self._weight.unsqueeze(1)
        probability = float(self._model.log_odds(pooled.unsqueeze(0), self._marks.unsqueeze(0)).sigmoid())
        logits = self._scores.all()
        return probability, odds(logits) if self._kind is InstanceScore.EVIDENCE else attention_scores(logits)


def top_and_bottom(attention: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Indices of the bag's instances with the highest and the lowest attention.

    Args:
        attention: (N,).
        n: how many of each; fewer if the bag is small.

    Returns:
        Two tensors of int64 (min(n, max(1, N // 2)),).
    """
    k = min(n, max(1, len(attention) // 2))
    order = attention.detach().argsort(descending=True)
    return order[:k], order[-k:]
