"""The Brier score against its definition, and the calibration curve against bins made by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytomil.evaluation.intervals import MAX_BINS, MIN_BAGS_PER_BIN, brier_interval, calibration_points
from cytomil.evaluation.metrics import bag_metrics
from cytomil.mil.intervals import mean_interval, proportion_interval

steady = settings(derandomize=True, deadline=None, max_examples=60, database=None)
bags = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), min_size=1, max_size=120).map(
    lambda pairs: ([p for p, _ in pairs], [label for _, label in pairs])
)


@steady
@given(bags)
def test_the_brier_score_is_the_mean_squared_error(drawn):
    probabilities, labels = drawn
    naive = sum((p - label) ** 2 for p, label in zip(probabilities, labels, strict=True)) / len(labels)
    assert bag_metrics(probabilities, labels, 0.5).brier == pytest.approx(naive, abs=1e-12)


def test_known_scores():
    assert bag_metrics([1.0, 0.0], [1, 0], 0.5).brier == 0.0
    assert bag_metrics([0.5, 0.5], [1, 0], 0.5).brier == 0.25
    assert bag_metrics([0.2] * 5, [1, 0, 0, 0, 0], 0.5).brier == pytest.approx(0.2 * 0.8)
    assert bag_metrics([], [], 0.5).brier is None


def test_the_interval_is_over_patients():
    probabilities, labels = [0.9, 0.7, 0.2, 0.4], [1, 1, 0, 0]
    errors = [0.01, 0.09, 0.04, 0.16]
    assert brier_interval(probabilities, labels, [""] * 4) == pytest.approx(mean_interval(errors))
    by_patient = [(errors[0] + errors[1]) / 2, (errors[2] + errors[3]) / 2]
    assert brier_interval(probabilities, labels, ["a", "a", "b", "b"]) == pytest.approx(mean_interval(by_patient))
    assert brier_interval([0.5], [1], [""]) is None


@steady
@given(bags)
def test_every_bag_is_in_one_bin_in_order_of_probability(drawn):
    probabilities, labels = drawn
    rows = calibration_points(probabilities, labels)
    assert sum(row["n_bags"] for row in rows) == len(labels)
    assert sum(row["positive"] * row["n_bags"] for row in rows) == pytest.approx(sum(labels))
    assert sum(row["probability"] * row["n_bags"] for row in rows) == pytest.approx(sum(probabilities))
    means = [row["probability"] for row in rows]
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(means))
    assert len(rows) == 1 or min(row["n_bags"] for row in rows) >= MIN_BAGS_PER_BIN
    assert len(rows) <= MAX_BINS


def test_bins_and_their_intervals_by_hand():
    probabilities = [0.1] * 5 + [0.8] * 5
    labels = [0, 0, 0, 0, 1, 1, 1, 1, 1, 0]
    low, high = calibration_points(probabilities, labels)
    assert (low["probability"], low["positive"], low["n_bags"]) == (pytest.approx(0.1), 0.2, 5)
    assert (high["probability"], high["positive"], high["n_bags"]) == (pytest.approx(0.8), 0.8, 5)
    assert (low["low"], low["high"]) == proportion_interval(0.2, 5)


def test_no_bags_give_no_curve_and_a_wrong_probability_is_refused():
    assert calibration_points([], []) == []
    with pytest.raises(ValueError, match="between 0 and 1"):
        calibration_points([1.5], [1])
    assert np.isfinite(calibration_points([0.5], [1])[0]["low"])
