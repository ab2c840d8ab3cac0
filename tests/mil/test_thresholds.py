import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from cytomil.mil.aggregators.base import CrossFittedBags
from cytomil.mil.cross_validate import HeldOut
from cytomil.mil.thresholds import best_f1_threshold, choose_thresholds, sensitivity_threshold, steady_f1_threshold

BAGS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 1)), min_size=2, max_size=14).filter(
    lambda bags: any(label for _, label in bags)
)


def arrays(bags):
    return np.array([p / 20 for p, _ in bags]), np.array([label for _, label in bags])


@settings(max_examples=150, deadline=None)
@given(BAGS)
def test_no_threshold_has_a_better_f1(bags):
    probabilities, labels = arrays(bags)
    chosen = best_f1_threshold(probabilities, labels)
    reached = f1_score(labels, probabilities >= chosen, zero_division=0)
    called = probabilities >= np.arange(-0.025, 1.1, 0.025)[:, None]
    # By hand, since scikit-learn takes half a millisecond for each of the seven thousand.
    best = max(2 * (called & (labels == 1)).sum(axis=1) / np.maximum(called.sum(axis=1) + labels.sum(), 1))
    assert reached == pytest.approx(best)


@settings(max_examples=150, deadline=None)
@given(BAGS, st.floats(0.05, 1.0))
def test_the_sensitivity_threshold_is_the_highest_that_keeps_enough_positives(bags, wanted):
    probabilities, labels = arrays(bags)
    chosen = sensitivity_threshold(probabilities, labels, wanted)
    positive = probabilities[labels == 1]
    assert (positive >= chosen).mean() >= wanted - 1e-9
    higher = sorted(p for p in positive if p > chosen)
    if higher:
        assert (positive >= higher[0]).mean() < wanted


def test_low_never_exceeds_decision_and_ranges_hold_every_fold():
    probabilities = np.array([0.9, 0.2, 0.8, 0.3, 0.7, 0.6])
    labels = np.array([1, 0, 1, 0, 1, 0])
    fold = np.array([0, 0, 1, 1, 2, 2])
    found = choose_thresholds(HeldOut(probabilities, fold, 1, np.zeros(1)), labels, None, 0.95, 0)
    assert found.low <= found.decision
    # A fold of one bag a label is its own only bootstrap.
    assert found.decision_range == pytest.approx((0.55, max(0.65, found.decision)))
    assert found.low_range == pytest.approx((0.55, max(0.65, found.low)))
    assert 0.6 < found.decision < 0.8


def test_the_models_own_judged_bags_come_before_those_of_the_folds_and_the_ranges_hold_both():
    held_out = HeldOut(np.array([0.9, 0.2, 0.8, 0.3]), np.array([0, 0, 1, 1]), 1, np.zeros(1))
    own = CrossFittedBags(np.array([0.5, 0.3, 0.4, 0.2]), np.array([1, 0, 1, 0]))
    found = choose_thresholds(held_out, np.array([1, 0, 1, 0]), own, 1.0, 0)
    assert found.decision == steady_f1_threshold(own.probabilities, own.labels, 0) < 0.5
    assert found.low <= found.decision
    assert found.decision_range == pytest.approx((found.decision, 0.55))


def test_separable_bags_are_cut_in_the_middle_of_the_gap():
    assert best_f1_threshold(np.array([0.1, 0.3, 0.7, 0.9]), np.array([0, 0, 1, 1])) == pytest.approx(0.5)


@settings(max_examples=15, deadline=None)
@given(BAGS, st.integers(0, 9))
def test_the_steady_threshold_lies_among_the_bags_and_hangs_on_the_seed_alone(bags, seed):
    probabilities, labels = arrays(bags)
    chosen = steady_f1_threshold(probabilities, labels, seed)
    assert probabilities.min() / 2 - 1e-12 <= chosen <= probabilities.max() + 1e-12  # a mean is rounded
    assert steady_f1_threshold(probabilities, labels, seed) == chosen


def test_the_steady_threshold_moves_less_from_sample_to_sample():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 9)
    samples = [(rng.normal(0.15 * labels + 0.4, 0.12)).clip(0, 1) for _ in range(60)]
    best = [best_f1_threshold(sample, labels) for sample in samples]
    steady = [steady_f1_threshold(sample, labels, 0) for sample in samples]
    assert np.std(steady) < 0.8 * np.std(best)


def test_every_order_of_bags_gives_the_same_threshold():
    bags = [(0.2, 0), (0.4, 1), (0.6, 0), (0.8, 1)]
    found = {
        best_f1_threshold(np.array([p for p, _ in order]), np.array([y for _, y in order]))
        for order in itertools.permutations(bags)
    }
    assert len(found) == 1
