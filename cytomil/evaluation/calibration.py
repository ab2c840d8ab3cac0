"""How well probabilities agree with outcomes: the interval of the Brier score, and the calibration curve."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from cytomil.evaluation.metrics import checked_probabilities
from cytomil.mil.intervals import Interval, mean_interval, proportion_interval

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
