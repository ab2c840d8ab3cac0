"""The interface of an aggregator: from a bag of embeddings to the bag's probability and one score per instance."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from cytomil.config import Config as BaseConfig
from cytomil.mil.bags import TrainingBag
from cytomil.mil.config import FitConfig, InstanceScore

NORMAL_CELL = "the average cell of a normal training slide"
EVIDENCE_MEANING = f"× {NORMAL_CELL}"
ATTENTION_MEANING = "× the attention of this slide's average cell"
DEFAULTS = FitConfig()
_EXACT_TO = 200.0  # e^200 times the largest float32, divided by the smallest, is still a float64


class Reading(Protocol):
    """Reads one bag block by block, so that a bag need not fit into memory.

    The probability is between 0 and 1, and scores are finite, for any instances that `Standardiser` can return.
    """

    def add(self, instances: Tensor) -> None:
        """Take the bag's next instances, (n ≥ 1, D), standardised."""
        ...

    def result(self) -> tuple[float, Tensor]:
        """The bag's probability of being positive, and a score above 0 for each of its N instances, (N,)."""
        ...


@dataclass(frozen=True)
class CrossFittedBags:
    """Probabilities of the training bags from an aggregator that holds bags out while it is fitted.

    Each bag is scored by an aggregator that did not learn from its patient. A curve then maps scores to probabilities.

    Args:
        probabilities: (n_bags,), 0 to 1, by the curve fitted to all bags.
        labels: (n_bags,), 0 or 1.
        fold: (n_bags,), bags with the same number were held out together. None if a patient is in several folds or a bag
            is missing.
        held_out_probabilities: (n_bags,), by curves that were fitted without the bag's fold. None if ``fold`` is None.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    fold: np.ndarray | None = None
    held_out_probabilities: np.ndarray | None = None


class Aggregator(nn.Module, ABC):
    """An aggregator or one-class scorer. Everything it has learnt is in its parameters and buffers.

    Attributes:
        Config: the class of its settings, a subclass of `cytomil.config.Config`. The default has no settings.
        config: the arguments that build another instance of the same shape, as JSON.
        meaning: the meaning of a score, for each kind of score that it supports. The words follow a number: "14 × the
            average cell".
        by_epochs: whether it is fitted over epochs. Cross-validation then chooses their number.
        averaged: whether the ensemble averages several models from different seeds.
        takes_feedback: whether it uses `TrainingBag.verdicts`.
        unused: names of the settings of `FitConfig` that have no effect.
        holds_out: whether ``fit`` holds bags out and sets ``cross_fitted``.
        cross_fitted: cross-fitted probabilities of the training bags. Available only right after fitting.
    """

    Config: ClassVar[type[BaseConfig]] = BaseConfig
    meaning: ClassVar[Mapping[InstanceScore, str]] = {InstanceScore.EVIDENCE: EVIDENCE_MEANING}
    by_epochs: ClassVar[bool] = True
    averaged: ClassVar[bool] = True
    takes_feedback: ClassVar[bool] = False
    holds_out: ClassVar[bool] = False
    unused: ClassVar[tuple[str, ...]] = ()

    config: dict[str, Any]
    cross_fitted: CrossFittedBags | None = None

    @classmethod
    @abstractmethod
    def fit(
        cls,
        bags: Sequence[TrainingBag],
        settings: FitConfig = DEFAULTS,
        options: BaseConfig | None = None,
        epochs: int = 1,
        seed: int = 0,
    ) -> Iterator[Self]:
        """Fit to bags. Yields the same object in evaluation mode after every epoch, or once without epochs.

        Args:
            bags: standardised bags of both labels.
            settings: the settings that all aggregators share.
            options: the settings of this aggregator, an instance of ``cls.Config``. None: its defaults.
            epochs: number of epochs; ignored if ``by_epochs`` is false.
            seed: the seed of every random choice.
        """

    @classmethod
    def fitted_in(cls, settings: FitConfig) -> torch.dtype:
        """The dtype of instances in fitting, including held-out ones. A 16-bit type halves the time of matrix products."""
        return torch.float32

    @abstractmethod
    def read(self, kind: InstanceScore) -> Reading:
        """Start reading a bag. The unit of evidence differs between aggregators. The ensemble divides by a mean."""

    @torch.inference_mode()
    def assess(self, instances: Tensor, kind: InstanceScore = InstanceScore.EVIDENCE) -> tuple[float, Tensor]:
        """Probability and instance scores (N,) of a standardised bag in memory, (N ≥ 1, D)."""
        reading = self.read(kind)
        reading.add(instances)
        return reading.result()


class Gathered:
    """Collects one number per instance, block by block, in one buffer that doubles when it is full.

    A list of small pieces would fragment memory. The pieces occupy the gaps between large blocks. The next large block then
    no longer fits, and memory grows by a block for every few kilobytes kept.
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._count = 0

    def add(self, numbers: Tensor) -> None:
        """Copy the next numbers, (n,). All blocks must have the dtype of the first."""
        wanted = self._count + len(numbers)
        if self._buffer is None:
            self._buffer = torch.empty_like(numbers, memory_format=torch.contiguous_format)
        elif wanted > len(self._buffer):
            larger = self._buffer.new_empty(max(wanted, 2 * len(self._buffer)))
            larger[: self._count] = self._buffer[: self._count]
            self._buffer = larger
        self._buffer[self._count : wanted] = numbers
        self._count = wanted

    def all(self) -> Tensor:
        """All numbers so far, (N,), in order. Raises `ValueError` if there are none."""
        if self._buffer is None:
            raise ValueError("no numbers have been added")
        return self._buffer[: self._count]


class PooledReading:
    """A reading whose bag probability depends on one number per instance.

    Args:
        number: instances (n, D) → (n,), such as a logit or a distance.
        pool: the numbers of the whole bag (N,) → the bag's probability.
        score: the numbers of the whole bag (N,) → instance scores (N,), above 0.
    """

    def __init__(
        self, number: Callable[[Tensor], Tensor], pool: Callable[[Tensor], float], score: Callable[[Tensor], Tensor]
    ) -> None:
        self._number, self._pool, self._score = number, pool, score
        self._numbers = Gathered()

    def add(self, instances: Tensor) -> None:
        """See `Reading`."""
        self._numbers.add(self._number(instances))

    def result(self) -> tuple[float, Tensor]:
        """See `Reading`."""
        numbers = self._numbers.all()
        return self._pool(numbers), self._score(numbers)


def odds(log_odds: Tensor) -> Tensor:
    """exp(x) as float64, (N,) → (N,). The result is finite, above 0 and in the order of x for any finite float32 x.

    It is exact up to |x| = 200. Beyond that only the order matters, and it changes linearly with x.
    """
    exact = log_odds.double().clamp(-_EXACT_TO, _EXACT_TO)
    beyond = 1 + (log_odds.double() - exact).abs()
    return exact.exp() * torch.where(log_odds > 0, beyond, 1 / beyond)


def attention_scores(raw: Tensor) -> Tensor:
    """Attention logits of a bag (N,) → attention relative to the bag's average instance, float64 (N,), above 0."""
    exact = raw.double()
    return odds(exact - exact.logsumexp(dim=0) + math.log(len(raw)))


def top_count(n: int, fraction: float) -> int:
    """The number of instances in the top ``fraction`` (0 to 1) of ``n``, at least one."""
    return min(n, max(1, round(fraction * n)))
