"""Bag figures over many bags that are redrawn from the cells of a few evaluated bags."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cytomil.evaluation.metrics import BagMetrics, bag_metrics
from cytomil.mil.thresholds import best_f1_threshold

Call = Callable[[np.ndarray], float]
"""Maps a bag's embeddings, float32 (N, D), to its probability."""


@dataclass(frozen=True)
class RedrawnMetrics:
    """Figures of a model on redrawn bags.

    The bags are not a sample of new slides, because they repeat the same cells. More bags reduce only the error of the
    draw, not that of the choice of cells.

    Args:
        bag: figures at the model's own threshold.
        best_f1: F1 at ``best_threshold``. Its difference to ``bag.f1`` is the cost of a threshold from training bags.
        best_threshold: the threshold with the highest F1 on these bags.
        bag_size: cells per bag.
        n_witnesses: witnesses per positive bag.
        n_normal: normal cells to draw from.
        n_abnormal: abnormal cells to draw from.
        probabilities: of each bag, so that runs can be combined.
        labels: of each bag.
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
        """The fields as plain types for `json`."""
        return dataclasses.asdict(self)


def redrawn_metrics(
    bags: Sequence[tuple[np.ndarray, np.ndarray]], call: Call, threshold: float, n: int, seed: int
) -> RedrawnMetrics:
    """Draw ``n`` bags from the cells of ``bags``, half of them positive, and compute the figures of ``call`` on them.

    A drawn bag has the median number of cells of ``bags``. A positive one has their mean number of witnesses, at least one.
    No cell is drawn twice for a bag, unless there are too few.

    Args:
        bags: embeddings, float32 (N, D), and instance labels (N,) of each: 1 abnormal, 0 normal; others are left out.
        call: the model.
        threshold: the model calls a bag positive from this probability on.
        n: bags to draw, ≥ 2.
        seed: of the draw.

    Raises:
        ValueError: the bags hold no normal or no abnormal cell.
    """
    from sklearn.metrics import f1_score

    values, labels = np.concatenate([bag[0] for bag in bags]), np.concatenate([bag[1] for bag in bags])
    normal, abnormal = (np.flatnonzero(labels == kind) for kind in (0, 1))
    if not len(normal) or not len(abnormal):
        raise ValueError("redrawing bags needs normal and abnormal cells of known label")
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
