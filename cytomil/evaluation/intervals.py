"""Intervals of the figures of one evaluation, by patient if known, and how well probabilities agree with outcomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cytomil.evaluation.metrics import (
    DEFAULT_SHARE,
    BagMetrics,
    ScoredBag,
    bags_with_witness,
    checked_probabilities,
    instance_auroc,
    instance_average_precision,
    recall_at_fraction,
    recall_at_k,
)
from cytomil.mil.intervals import (
    Interval,
    auroc_interval,
    f1_interval,
    mean_interval,
    n_independent,
    proportion_interval,
)

MIN_BAGS_PER_BIN = 5
MAX_BINS = 10


def brier_interval(probabilities: ArrayLike, labels: ArrayLike, patients: Sequence[str]) -> Interval | None:
    """95 % interval of the Brier score: Student's, over the patients' mean errors. None for fewer than two patients.

    Args:
        probabilities: of being positive, shape (B,), each in 0..1.
        labels: shape (B,), 1 positive and 0 negative.
        patients: of the bags, shape (B,); "" if unknown, which counts as a patient of its own.

    Raises:
        ValueError: the lengths differ, a probability is outside 0..1, or a label is neither 0 nor 1.
    """
    checked, positive = checked_probabilities(probabilities, labels)
    per_patient: dict[str, list[float]] = {}
    for i, (error, patient) in enumerate(zip((checked - positive) ** 2, patients, strict=True)):
        per_patient.setdefault(patient or f"bag {i}", []).append(float(error))
    return mean_interval([float(np.mean(errors)) for errors in per_patient.values()])


def calibration_points(probabilities: ArrayLike, labels: ArrayLike) -> list[dict[str, float]]:
    """The calibration curve: bags in order of probability, in bins of equally many.

    A bin has at least `MIN_BAGS_PER_BIN` bags, and there are at most `MAX_BINS`. Fewer bags give a single bin.

    Args:
        probabilities: of being positive, shape (B,), each in 0..1.
        labels: shape (B,), 1 positive and 0 negative.

    Returns:
        Rows with `probability` (the bin's mean), `positive` (its fraction of positive bags), `low` and `high` (Wilson's 95 %
        interval of that fraction) and `n_bags`. No rows without bags.

    Raises:
        ValueError: as `brier_interval`.
    """
    checked, positive = checked_probabilities(probabilities, labels)
    order = np.argsort(checked, kind="stable")
    n_bins = min(MAX_BINS, max(1, checked.size // MIN_BAGS_PER_BIN))
    rows = []
    for bin_ in np.array_split(order, n_bins) if checked.size else []:
        fraction = float(positive[bin_].mean())
        low, high = proportion_interval(fraction, bin_.size)
        mean = float(checked[bin_].mean())
        rows.append({"probability": mean, "positive": fraction, "low": low, "high": high, "n_bags": bin_.size})
    return rows


Bounds = dict[str, dict[str, float]]


def bag_intervals(
    metrics: BagMetrics, probabilities: Sequence[float], labels: Sequence[int], patients: Sequence[str]
) -> Bounds:
    """``low`` and ``high`` of each defined figure over bags, 0 to 1.

    AUROC has Newcombe's interval. Sensitivity, specificity and AUPRC have Wilson's, with the number of patients of that
    label as the number of cases (for AUPRC: Boyd et al. 2013, the binomial interval over positives). F1 has Wilson's
    interval of TP / (TP + FP + FN). The Brier score has that of `brier_interval`.

    Args:
        metrics: of these bags.
        probabilities: (B,), 0 to 1.
        labels: (B,), 0 or 1.
        patients: (B,), "" if unknown.
    """
    n_positive, n_negative = n_independent(labels, patients)
    called = np.asarray(probabilities) >= metrics.threshold
    counted = called | np.asarray(labels, bool)
    n_counted = sum(n_independent(counted[counted], np.asarray(patients)[counted].tolist()))
    by_name: dict[str, Callable[[float], Interval]] = {
        "f1": lambda value: f1_interval(value, n_counted),
        "auroc": lambda value: auroc_interval(value, n_positive, n_negative),
        "auprc": lambda value: proportion_interval(value, n_positive),
        "sensitivity": lambda value: proportion_interval(value, n_positive),
        "specificity": lambda value: proportion_interval(value, n_negative),
    }
    figures = {name: getattr(metrics, name) for name in by_name}
    found = {name: by_name[name](value) for name, value in figures.items() if value is not None}
    brier = brier_interval(probabilities, labels, patients)
    return {name: _bounds(interval) for name, interval in (found | ({"brier": brier} if brier else {})).items()}


def instance_intervals(bags: Sequence[ScoredBag], k: int | None = None) -> Bounds:
    """``low`` and ``high`` of the means over positive bags: Student's interval over bags. Empty for a single bag.

    Args:
        bags: as in `instance_metrics`.
        k: as in `instance_metrics`.
    """
    usable, _ = bags_with_witness(bags)
    values: dict[str, list[float | None]] = {
        "recall_at_k": [
            recall_at_fraction(*bag, DEFAULT_SHARE) if k is None else recall_at_k(*bag, k) for bag in usable
        ],
        **{
            f"recall_at_{share}pct": [recall_at_fraction(*bag, share / 100) for bag in usable]
            for share in (1, 5, 10, 40)
        },
        "average_precision": [instance_average_precision(*bag) for bag in usable],
        "auroc": [instance_auroc(*bag) for bag in usable],
    }
    found = {name: mean_interval([v for v in per_bag if v is not None]) for name, per_bag in values.items()}
    return {name: _bounds(interval) for name, interval in found.items() if interval is not None}


def _bounds(interval: Interval) -> dict[str, Any]:
    return {"low": interval[0], "high": interval[1]}
