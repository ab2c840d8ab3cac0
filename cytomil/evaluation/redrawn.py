"""Bag figures over many bags redrawn from the cells of the few that were measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cytomil.evaluation.metrics import BagMetrics, bag_metrics
from cytomil.mil.thresholds import best_f1_threshold

Call = Callable[[np.ndarray], float]
"""From a bag's embeddings, float32 (N, D), to its probability."""


@dataclass(frozen=True)
class RedrawnMetrics:
    """What a model makes of bags drawn anew; ``bag`` are its figures at the model's own threshold.

    ``best_f1`` is F1 at ``best_threshold``, the one that these bags would choose: how far ``bag.f1`` lies under it is what
    a threshold chosen on training bags costs. ``probabilities`` and ``labels`` are those of each bag, so that runs can be
    put together. ``bag_size`` and ``n_witnesses`` are those of a drawn positive bag, ``n_normal`` and ``n_abnormal`` the
    cells they are drawn from. The same cells come again and again, so that the bags are no sample of new slides: more of
    them settle the draw, not what other cells would give.
    """

    bag: BagMetrics
    best_f1: float
    best_threshold: float
    bag_size: int
    n_witnesses: int
    n_normal: int
    n_abnormal: int
    probabilities: list[float]
    labels: list[int]

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as plain types that `json` can write."""
        return dataclasses.asdict(self)


def redrawn_metrics(
    bags: Sequence[tuple[np.ndarray, np.ndarray]], call: Call, threshold: float, n: int, seed: int
) -> RedrawnMetrics:
    """Draw ``n`` bags, every second positive, from the cells of ``bags``, let ``call`` judge them, and measure.

    A drawn bag has as many cells as the median one of ``bags``, a positive one as many witnesses as they have on average,
    at least one; a bag has no cell twice, unless there are fewer cells than it needs.

    Args:
        bags: embeddings, float32 (N, D), and instance labels (N,) of each: 1 abnormal, 0 normal; others are left out.
        call: the model.
        threshold: from which probability it calls a bag positive.
        n: bags to draw, ≥ 2.
        seed: of the draw.

    Raises:
        ValueError: the bags hold no normal cell, or no abnormal one.
    """
    from sklearn.metrics import f1_score

    values, labels = np.concatenate([bag[0] for bag in bags]), np.concatenate([bag[1] for bag in bags])
    normal, abnormal = (np.flatnonzero(labels == kind) for kind in (0, 1))
    if not len(normal) or not len(abnormal):
        raise ValueError("to draw bags anew there must be normal and abnormal cells of known label")
    size = int(np.median([len(bag[1]) for bag in bags]))
    counts = [int((bag[1] == 1).sum()) for bag in bags]
    n_witnesses = max(1, round(float(np.mean([count for count in counts if count]))))
    rng = np.random.default_rng(seed)

    def drawn(of: np.ndarray, count: int) -> np.ndarray:
        return rng.choice(of, count, replace=count > len(of))

    truth, probabilities = [], []
    for i in range(n):
        witnesses = n_witnesses * (i % 2)
        cells = np.concatenate([drawn(normal, size - witnesses), drawn(abnormal, witnesses)])
        truth.append(i % 2)
        probabilities.append(call(values[cells]))
    metrics = bag_metrics(probabilities, truth, threshold)
    judged = np.array(probabilities)
    best_threshold = best_f1_threshold(judged, np.array(truth))
    best = float(f1_score(truth, judged >= best_threshold))
    return RedrawnMetrics(
        metrics, best, best_threshold, size, n_witnesses, len(normal), len(abnormal), probabilities, truth
    )
