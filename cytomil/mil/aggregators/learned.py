"""Aggregators learnt by gradient descent, one bag a step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from threading import Lock
from typing import Self

import torch
from torch import Tensor

from cytomil.mil.aggregators.base import Aggregator
from cytomil.mil.bags import TrainingBag
from cytomil.mil.config import FitMilConfig

_SEEDING = Lock()


class LearnedAggregator(Aggregator):
    """An aggregator with a loss a bag, trained by Adam on the bags in random order."""

    @classmethod
    @abstractmethod
    def untrained(cls, bags: Sequence[TrainingBag], settings: FitMilConfig, seed: int) -> Self:
        """Fresh weights, drawn from PyTorch's global generator, which has been seeded."""

    @abstractmethod
    def loss(self, instances: Tensor, label: Tensor, settings: FitMilConfig, generator: torch.Generator) -> Tensor:
        """The loss (a scalar) of one bag, (N ≥ 1, D), with its label, int64 (); random choices are ``generator``'s."""

    @classmethod
    def fit(cls, bags: Sequence[TrainingBag], settings: FitMilConfig, epochs: int, seed: int) -> Iterator[Self]:
        """See `Aggregator.fit`."""
        dtype = cls.fitted_in(settings)
        inputs = [(bag.values.to(dtype), torch.tensor(bag.label)) for bag in bags]
        generator = torch.Generator().manual_seed(seed)
        with _SEEDING:  # fits run in threads side by side, and layers draw their weights from the one global generator
            torch.manual_seed(seed)
            model = cls.untrained(bags, settings, seed)
        optimizer = torch.optim.Adam(
            model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        for _ in range(epochs):
            model.train()
            for i in torch.randperm(len(inputs), generator=generator).tolist():
                optimizer.zero_grad(set_to_none=True)
                values, label = inputs[i]
                model.loss(values, label, settings, generator).backward()
                optimizer.step()
            yield model.eval()
