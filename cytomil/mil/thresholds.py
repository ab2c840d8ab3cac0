"""Decision thresholds, chosen on held-out training bags only."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cytomil.mil.aggregators.base import JudgedBags
from cytomil.mil.cross_validate import HeldOut

_BOOTSTRAPS = 200


@dataclass(frozen=True)
class Thresholds:
    """The thresholds between the three calls, as probabilities.

    Args:
        decision: from here on, a bag is called positive (``review first``).
        low: below, a bag is ``low priority``; at most ``decision``.
        decision_range: minimum and maximum of ``decision`` and of what each fold alone would have chosen.
        low_range: the same for ``low``.
    """

    decision: float
    low: float
    decision_range: tuple[float, float]
    low_range: tuple[float, float]


def choose_thresholds(
    held_out: HeldOut, labels: np.ndarray, own: JudgedBags | None, sensitivity: float, seed: int
) -> Thresholds:
    """Choose ``decision`` by `steady_f1_threshold`, and ``low`` so that ``sensitivity`` of the positive bags reach it.

    The bags are those that the model judged itself, if any, otherwise cross-validation's. In cross-validation, each fold's
    model has its own scale of probability, learnt from fewer bags (docs/log/research-log.md, 69).

    Args:
        held_out: cross-validation's results.
        labels: of the same bags, (n_bags,), 0 or 1.
        own: `Aggregator.judged` of the model that the thresholds are for.
        sensitivity: fraction of the positive bags, 0 to 1.
        seed: of the bootstraps.
    """
    judged = own or JudgedBags(held_out.probabilities, labels)
    decision = steady_f1_threshold(judged.probabilities, judged.labels, seed)
    low = min(sensitivity_threshold(judged.probabilities, judged.labels, sensitivity), decision)
    folds = [held_out.fold == number for number in range(held_out.fold.max() + 1)]
    folds = [fold for fold in folds if labels[fold].any()]  # a threshold needs a positive bag
    decisions = [steady_f1_threshold(held_out.probabilities[fold], labels[fold], seed) for fold in folds]
    lows = [
        min(sensitivity_threshold(held_out.probabilities[fold], labels[fold], sensitivity), upper)
        for fold, upper in zip(folds, decisions, strict=True)
    ]
    return Thresholds(
        decision, low, (min(decision, *decisions), max(decision, *decisions)), (min(low, *lows), max(low, *lows))
    )


def steady_f1_threshold(probabilities: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """Mean of `best_f1_threshold` over 200 bootstraps, stratified by label; same shapes as there.

    With few bags, the best threshold depends on one or two of them; the mean varies less (docs/log/research-log.md, 59).
    """
    rng = np.random.default_rng(seed)
    sides = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    drawn = [np.concatenate([rng.choice(side, len(side)) for side in sides]) for _ in range(_BOOTSTRAPS)]
    return float(np.mean([best_f1_threshold(probabilities[bags], labels[bags]) for bags in drawn]))


def best_f1_threshold(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The threshold with the highest F1, halfway to the next lower probability. Of equal ones, the highest is taken.

    Args:
        probabilities: shape (n,), 0 to 1.
        labels: shape (n,), 0 or 1, at least one 1.
    """
    order = np.argsort(-probabilities, kind="stable")
    ranked, positive = probabilities[order], labels[order]
    found = np.cumsum(positive)
    f1 = 2 * found / (np.arange(1, len(ranked) + 1) + positive.sum())
    # A threshold cannot separate equal probabilities: only the last of a run of equals can be the cut.
    f1[:-1][ranked[:-1] == ranked[1:]] = -1
    cut = int(f1.argmax())
    below = ranked[cut + 1] if cut + 1 < len(ranked) else 0.0
    return float((ranked[cut] + below) / 2)


def sensitivity_threshold(probabilities: np.ndarray, labels: np.ndarray, sensitivity: float) -> float:
    """The highest threshold that a fraction ``sensitivity`` of the positive bags reach; shapes as `best_f1_threshold`."""
    positive = np.sort(probabilities[labels == 1])[::-1]
    return float(positive[math.ceil(sensitivity * len(positive) - 1e-9) - 1])
