"""Decision thresholds, chosen on held-out training bags only."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cytomil.mil.aggregators.base import CrossFittedBags
from cytomil.mil.cross_validate import HeldOut

_BOOTSTRAPS = 200


@dataclass(frozen=True)
class Thresholds:
    """The thresholds between the three calls, as probabilities.

    Args:
        decision: the lowest probability of a bag that is called positive (``review first``).
        low: bags with a lower probability are ``low priority``; at most ``decision``.
        decision_range: min and max of ``decision`` and of the thresholds chosen on each fold alone.
        low_range: the same for ``low``.
    """

    decision: float
    low: float
    decision_range: tuple[float, float]
    low_range: tuple[float, float]


def choose_thresholds(
    held_out: HeldOut, labels: np.ndarray, own: CrossFittedBags | None, sensitivity: float, seed: int
) -> Thresholds:
    """Choose ``decision`` by `steady_f1_threshold`, and ``low`` so that ``sensitivity`` of the positive bags reach it.

    If the model has cross-fitted probabilities, these are used, otherwise those of cross-validation. In cross-validation,
    the scale of the probabilities differs between the folds' models, which learnt from fewer bags
    (docs/log/research-log.md, 69).

    Args:
        held_out: cross-validation's results.
        labels: of the same bags, (n_bags,), 0 or 1.
        own: `Aggregator.cross_fitted` of the final model.
        sensitivity: fraction of the positive bags, 0 to 1.
        seed: of the bootstraps.
    """
    bags = own or CrossFittedBags(held_out.probabilities, labels)
    decision = steady_f1_threshold(bags.probabilities, bags.labels, seed)
    low = min(sensitivity_threshold(bags.probabilities, bags.labels, sensitivity), decision)
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
    """Mean of `best_f1_threshold` over 200 bootstraps, stratified by label; with the same arguments.

    With few bags, the best threshold depends on one or two of them; the mean varies less (docs/log/research-log.md, 59).
    """
    rng = np.random.default_rng(seed)
    by_label = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    drawn = [np.concatenate([rng.choice(side, len(side)) for side in by_label]) for _ in range(_BOOTSTRAPS)]
    return float(np.mean([best_f1_threshold(probabilities[chosen], labels[chosen]) for chosen in drawn]))


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
    # A threshold cannot separate equal probabilities, so only the last one of equal ones can be the cut.
    f1[:-1][ranked[:-1] == ranked[1:]] = -1
    cut = int(f1.argmax())
    below = ranked[cut + 1] if cut + 1 < len(ranked) else 0.0
    return float((ranked[cut] + below) / 2)


def sensitivity_threshold(probabilities: np.ndarray, labels: np.ndarray, sensitivity: float) -> float:
    """The highest threshold that a fraction ``sensitivity`` of the positive bags reach; shapes as `best_f1_threshold`."""
    positive = np.sort(probabilities[labels == 1])[::-1]
    return float(positive[math.ceil(sensitivity * len(positive) - 1e-9) - 1])
