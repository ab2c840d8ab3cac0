"""Decision thresholds, from held-out training bags alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cytomil.mil.aggregators.base import JudgedBags
from cytomil.mil.cross_validate import HeldOut

_BOOTSTRAPS = 200


@dataclass(frozen=True)
class Thresholds:
    """Where the three calls part.

    ``decision``: positive from here on (``review first``). ``low``: below it, ``low priority``; at most ``decision``.
    The ranges are the least and greatest value that these and single folds would have chosen.
    """

    decision: float
    low: float
    decision_range: tuple[float, float]
    low_range: tuple[float, float]


def choose_thresholds(
    held_out: HeldOut, labels: np.ndarray, own: JudgedBags | None, sensitivity: float, seed: int
) -> Thresholds:
    """``decision`` is `steady_f1_threshold` of held-out bags; ``low`` keeps ``sensitivity`` of the positive ones above it.

    The bags are the model's ``own`` judged ones where it has any, else cross-validation's: each fold's model has a scale of
    probability of its own, learnt from fewer bags (docs/log/research-log.md, 69).

    Args:
        held_out: cross-validation's bags.
        labels: theirs, (n_bags,), 0 or 1.
        own: `Aggregator.judged` of the model that the thresholds are for.
        sensitivity: 0 to 1.
        seed: of the bootstraps.
    """
    judged = own or JudgedBags(held_out.probabilities, labels)
    decision = steady_f1_threshold(judged.probabilities, judged.labels, seed)
    low = min(sensitivity_threshold(judged.probabilities, judged.labels, sensitivity), decision)
    folds = [held_out.fold == number for number in range(held_out.fold.max() + 1)]
    folds = [fold for fold in folds if labels[fold].any()]  # without a positive bag there is nothing to call
    decisions = [steady_f1_threshold(held_out.probabilities[fold], labels[fold], seed) for fold in folds]
    lows = [
        min(sensitivity_threshold(held_out.probabilities[fold], labels[fold], sensitivity), upper)
        for fold, upper in zip(folds, decisions, strict=True)
    ]
    return Thresholds(
        decision, low, (min(decision, *decisions), max(decision, *decisions)), (min(low, *lows), max(low, *lows))
    )


def steady_f1_threshold(probabilities: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """Mean of `best_f1_threshold` over 200 bootstraps of the bags of either label; same shapes as there.

    Of a few bags the best threshold hangs on one or two; the mean is steadier (docs/log/research-log.md, 59).
    """
    rng = np.random.default_rng(seed)
    sides = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    drawn = [np.concatenate([rng.choice(side, len(side)) for side in sides]) for _ in range(_BOOTSTRAPS)]
    return float(np.mean([best_f1_threshold(probabilities[bags], labels[bags]) for bags in drawn]))


def best_f1_threshold(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The threshold with the highest F1: halfway to the next lower probability, the highest of several equal ones.

    Args:
        probabilities: shape (n,), 0 to 1.
        labels: shape (n,), 0 or 1, at least one 1.
    """
    order = np.argsort(-probabilities, kind="stable")
    ranked, positive = probabilities[order], labels[order]
    found = np.cumsum(positive)
    f1 = 2 * found / (np.arange(1, len(ranked) + 1) + positive.sum())
    # A threshold cannot part equal probabilities: only the last of a run of equals is a place to cut.
    f1[:-1][ranked[:-1] == ranked[1:]] = -1
    cut = int(f1.argmax())
    below = ranked[cut + 1] if cut + 1 < len(ranked) else 0.0
    return float((ranked[cut] + below) / 2)


def sensitivity_threshold(probabilities: np.ndarray, labels: np.ndarray, sensitivity: float) -> float:
    """The highest threshold that ``sensitivity`` (0 to 1) of the positive bags reach; same shapes as above."""
    positive = np.sort(probabilities[labels == 1])[::-1]
    return float(positive[math.ceil(sensitivity * len(positive) - 1e-9) - 1])
