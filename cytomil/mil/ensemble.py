"""Aggregators from different seeds, averaged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cytomil.mil.aggregators.base import Aggregator, JudgedBags
from cytomil.mil.bags import Standardiser, TrainingBag
from cytomil.mil.config import InstanceScore

_BLOCK = 8192
SCORE_BIN_EDGES = tuple(float(edge) for edge in np.geomspace(1e-2, 1e3, 41))


@dataclass(frozen=True)
class Assessment:
    """The model's result for one bag.

    Args:
        probability: of being positive, 0 to 1.
        scores: (N,), above 0, one per instance, in the unit that `Ensemble.meaning` names.
    """

    probability: float
    scores: np.ndarray


@dataclass(frozen=True)
class Member:
    """One aggregator, its standardiser, and its unit of evidence (`reference_evidence`)."""

    aggregator: Aggregator
    standardise: Standardiser
    reference: float


@dataclass(frozen=True)
class Ensemble:
    """Aggregators of one kind whose results are averaged. ``name`` is the kind's in the registry."""

    name: str
    members: tuple[Member, ...]
    instance_score: InstanceScore

    def assess(self, values: np.ndarray) -> Assessment:
        """Assess a bag's embeddings, float32 (N ≥ 1, D): the mean over the members."""
        return self.assess_blocks([values])

    def assess_blocks(self, blocks: Iterable[np.ndarray]) -> Assessment:
        """Assess a bag in blocks of embeddings, float32 (n ≥ 1, D). Each is read once, and one is in memory at a time."""
        reading = self.begin()
        for block in blocks:
            reading.add(block)
        return reading.result()

    def begin(self) -> EnsembleReading:
        """Begin to read a bag."""
        return EnsembleReading(self)

    @property
    def judged(self) -> JudgedBags | None:
        """`Aggregator.judged` of the only member. Aggregators that are averaged have none."""
        return self.members[0].aggregator.judged

    @property
    def meaning(self) -> str:
        """What an instance's score means, in words that follow a number."""
        return self.members[0].aggregator.meaning[self.instance_score]


class EnsembleReading:
    """Reads one bag block by block with all members."""

    def __init__(self, ensemble: Ensemble) -> None:
        self._ensemble = ensemble
        self._readings = [member.aggregator.read(ensemble.instance_score) for member in ensemble.members]

    @torch.inference_mode()
    def add(self, block: np.ndarray) -> None:
        """Take the bag's next embeddings, float32 (n ≥ 1, D)."""
        # A slide has too many cells to standardise all of them at once.
        for part in torch.from_numpy(block).split(_BLOCK):
            for member, reading in zip(self._ensemble.members, self._readings, strict=True):
                reading.add(member.standardise(part))

    @torch.inference_mode()
    def result(self) -> Assessment:
        """The mean over the members."""
        probabilities, scores = zip(*(reading.result() for reading in self._readings), strict=True)
        evidence = self._ensemble.instance_score is InstanceScore.EVIDENCE
        units = [member.reference if evidence else 1.0 for member in self._ensemble.members]
        shared = [score.div(unit).numpy() for score, unit in zip(scores, units, strict=True)]
        return Assessment(float(np.mean(probabilities)), np.mean(shared, axis=0))


def reference_evidence(aggregator: Aggregator, standardise: Standardiser, bags: Sequence[TrainingBag]) -> float:
    """The unit of evidence: its mean over all instances of the negative bags among ``bags``."""
    scores: list[Tensor] = [aggregator.assess(standardise(bag.values))[1] for bag in bags if bag.label == 0]
    return float(torch.cat(scores).mean())


def score_shares(scores: np.ndarray) -> np.ndarray:
    """Fraction of instances per bin of `SCORE_BIN_EDGES`. Scores beyond the edges count in the outermost bins."""
    clipped = np.clip(scores, SCORE_BIN_EDGES[0], SCORE_BIN_EDGES[-1])
    counts, _ = np.histogram(clipped, SCORE_BIN_EDGES)
    return counts / len(scores)
