"""F1 over the redrawn bags of several runs together: few test bags have a best threshold of their own by chance alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cytomil.evaluate.runs import Run
from cytomil.mil.thresholds import best_f1_threshold


@dataclass(frozen=True)
class PooledF1:
    """``f1`` with each run's bags called by its own model's threshold; ``best`` at the one threshold best for all of them."""

    f1: float
    best: float
    n_runs: int


def pool_f1(runs: Sequence[Run]) -> PooledF1 | None:
    """Of the runs whose records hold the redrawn bags' probabilities; None where there are none."""
    from sklearn.metrics import f1_score

    redrawn = [found for run in runs if (found := run.record["metrics"].get("redrawn")) and "probabilities" in found]
    if not redrawn:
        return None
    probabilities = np.concatenate([found["probabilities"] for found in redrawn])
    labels = np.concatenate([found["labels"] for found in redrawn])
    thresholds = np.concatenate([[found["bag"]["threshold"]] * len(found["labels"]) for found in redrawn])
    best = best_f1_threshold(probabilities, labels)
    of_own, of_best = (float(f1_score(labels, probabilities >= limit)) for limit in (thresholds, best))
    return PooledF1(of_own, of_best, len(redrawn))
