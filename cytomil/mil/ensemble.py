"""Aggregators from different seeds, averaged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cytomil.mil.instance_scores import instance_scores
from cytomil.mil.pamil import PAMIL
from cytomil.mil.train import Standardiser
from cytomil.settings import InstanceScore

_BLOCK = 8192
SCORE_BIN_EDGES = tuple(float(edge) for edge in np.geomspace(1e-2, 1e3, 41))


@dataclass(frozen=True)
class Assessment:
    """What the model makes of one bag.

    ``probability`` of being positive, 0 to 1; ``scores`` (N,): one number an instance, above 0, whose unit is
    `cytomil.mil.instance_scores.MEANING`'s.
    """

    probability: float
    scores: np.ndarray


@dataclass(frozen=True)
class Member:
    """One aggregator, what brings embeddings to its scale, and its unit of evidence (`reference_odds`)."""

    aggregator: PAMIL
    standardise: Standardiser
    reference: float


@dataclass(frozen=True)
class Ensemble:
    """Aggregators that speak with one voice."""

    members: tuple[Member, ...]
    instance_score: InstanceScore

    @torch.inference_mode()
    def assess(self, values: np.ndarray) -> Assessment:
        """Assess a bag's embeddings, float32 (N ≥ 1, D): the mean over the members."""
        embeddings = torch.from_numpy(values)
        probabilities, scores = [], []
        for member in self.members:
            blocks = partial(_standardised_blocks, embeddings, member.standardise)
            logits, attention = member.aggregator.forward_in_blocks(blocks)
            probabilities.append(float(logits.softmax(dim=0)[1]))
            score = instance_scores(self.instance_score, member.aggregator, member.reference, blocks(), attention)
            scores.append(score)
        return Assessment(float(np.mean(probabilities)), np.mean(scores, axis=0))


def _standardised_blocks(embeddings: Tensor, standardise: Standardiser) -> Iterator[Tensor]:
    """Standardise some thousand instances at a time: a slide's cells are too many for copies of all of them."""
    for block in embeddings.split(_BLOCK):
        yield standardise(block)


def score_shares(scores: np.ndarray) -> np.ndarray:
    """Share of instances in each bin of `SCORE_BIN_EDGES`; scores beyond the edges count in the outermost bins."""
    clipped = np.clip(scores, SCORE_BIN_EDGES[0], SCORE_BIN_EDGES[-1])
    counts, _ = np.histogram(clipped, SCORE_BIN_EDGES)
    return counts / len(scores)
