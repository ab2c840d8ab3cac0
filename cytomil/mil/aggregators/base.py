"""What an aggregator is: from a bag of embeddings to the bag's probability and one score an instance."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from cytomil.mil.bags import TrainingBag
from cytomil.mil.config import FitMilConfig, InstanceScore
from cytomil.mil.gathered import Gathered

NORMAL_CELL = "the average cell of a normal training slide"
EVIDENCE_MEANING = f"× {NORMAL_CELL}"
ATTENTION_MEANING = "× the attention of this slide's average cell"
_EXACT_TO = 200.0  # e^200 times the greatest float32, over the same's inverse, is still a float64


class Reading(Protocol):
    """One bag on its way through an aggregator, block by block, so that no bag need fit into memory.

    Whatever the instances, as long as `Standardiser` made them: the probability is one, and scores are finite.
    """

    def add(self, instances: Tensor) -> None:
        """Take the bag's next instances, (n ≥ 1, D), standardised."""
        ...

    def result(self) -> tuple[float, Tensor]:
        """The bag's probability of being positive, and a score above 0 for each of its instances, (N,)."""
        ...


@dataclass(frozen=True)
class JudgedBags:
    """Training bags' ``probabilities`` and ``labels``, both (n_bags,).

    ``fold`` (n_bags,) says which bags were held out together; None where a patient's bags stand in several folds, or a bag
    is missing. ``apart`` (n_bags,) is then each bag's probability on a scale that its fold had no part in.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    fold: np.ndarray | None = None
    apart: np.ndarray | None = None


class Aggregator(nn.Module, ABC):
    """A fitted aggregator or one-class scorer; parameters and buffers are all that it knows.

    ``config`` are the arguments that build another of its shape, as JSON. ``meaning`` says, for each kind of instance
    score that it can give, what such a score is, in a clinician's words that follow a number: "14 × the average cell".
    ``by_epochs``: whether it is fitted over epochs, of which cross-validation chooses the number. ``averaged``: whether
    the ensemble holds several of it, from different seeds. ``holds_out``: whether fitting it holds bags out, see ``judged``.

    ``judged`` is known of one that was just fitted and whose fitting holds bags out: the bags on its own scale of
    probability, each as if it had not learnt from its patient.
    """

    meaning: ClassVar[Mapping[InstanceScore, str]] = {InstanceScore.EVIDENCE: EVIDENCE_MEANING}
    by_epochs: ClassVar[bool] = True
    averaged: ClassVar[bool] = True
    holds_out: ClassVar[bool] = False

    config: dict[str, Any]
    judged: JudgedBags | None = None

    @classmethod
    @abstractmethod
    def fit(cls, bags: Sequence[TrainingBag], settings: FitMilConfig, epochs: int, seed: int) -> Iterator[Self]:
        """Fit to ``bags``, standardised already; yields after every epoch, or once where there are none.

        What is yielded is the same object every time, in evaluation mode. ``seed`` decides every random choice.
        """

    @classmethod
    def fitted_in(cls, settings: FitMilConfig) -> torch.dtype:
        """What instances, held-out ones too, are held in while fitting: a narrower type halves the products' time."""
        return torch.float32

    @abstractmethod
    def read(self, kind: InstanceScore) -> Reading:
        """Begin to read a bag. ``EVIDENCE`` scores are in the aggregator's own unit; the ensemble divides by a mean."""

    @torch.inference_mode()
    def assess(self, instances: Tensor, kind: InstanceScore = InstanceScore.EVIDENCE) -> tuple[float, Tensor]:
        """Probability and instance scores (N,) of a bag in memory, (N ≥ 1, D), standardised."""
        reading = self.read(kind)
        reading.add(instances)
        return reading.result()


class PooledReading:
    """A reading whose bag probability follows from the instances' own numbers alone.

    Args:
        number: instances (n, D) → (n,), such as a logit or a distance.
        pool: all of them (N,) → the bag's probability.
        score: all of them (N,) → instance scores (N,), above 0.
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
    """exp(x) as float64, (N,) → (N,), but finite, above 0 and in x's order for any finite float32 x.

    It is exact up to |x| = 200. Beyond, where only the order can matter to anyone, it grows with x itself, and falls likewise.
    """
    exact = log_odds.double().clamp(-_EXACT_TO, _EXACT_TO)
    beyond = 1 + (log_odds.double() - exact).abs()
    return exact.exp() * torch.where(log_odds > 0, beyond, 1 / beyond)


def attention_scores(raw: Tensor) -> Tensor:
    """Attention logits of a bag (N,) → attention in units of the bag's average instance, float64 (N,), above 0."""
    exact = raw.double()
    return odds(exact - exact.logsumexp(dim=0) + math.log(len(raw)))


def top_count(n: int, share: float) -> int:
    """How many instances the top ``share`` (0 to 1) of ``n`` are: at least one. A share, because bags differ in size."""
    return min(n, max(1, round(share * n)))
