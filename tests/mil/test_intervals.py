import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import f1_score, roc_auc_score

from cytomil.mil.intervals import (
    auroc_interval,
    f1_interval,
    mean_interval,
    n_independent,
    proportion_interval,
    student_half_width,
)

shares = st.floats(0, 1)


@given(st.integers(1, 60), st.data())
def test_a_proportions_interval_is_wilsons(n, data):
    k = data.draw(st.integers(0, n))
    reference = binomtest(k, n).proportion_ci(method="wilson")
    assert proportion_interval(k / n, n) == pytest.approx((reference.low, reference.high), abs=1e-9)


@given(shares, st.integers(1, 80), st.integers(1, 80))
def test_an_auroc_lies_in_its_interval_and_mirrors(auroc, n_positive, n_negative):
    low, high = auroc_interval(auroc, n_positive, n_negative)
    assert 0 <= low <= auroc <= high <= 1
    assert high > low
    mirrored = auroc_interval(1 - auroc, n_negative, n_positive)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-6)


def test_a_perfect_auroc_on_few_bags_is_not_sure():
    low, high = auroc_interval(1.0, 2, 2)
    assert high == 1
    assert low < 0.5
    assert auroc_interval(1.0, 9, 9)[0] > 0.7
    assert auroc_interval(1.0, 200, 200)[0] > 0.98


def test_newcombes_interval_covers_in_about_19_of_20_samples():
    rng = np.random.default_rng(0)
    true = 0.760250  # of two normals one standard deviation apart
    labels = np.repeat([1, 0], 12)
    covered = 0
    for _ in range(600):
        low, high = auroc_interval(roc_auc_score(labels, rng.normal(labels)), 12, 12)
        covered += low <= true <= high
    assert 0.92 <= covered / 600 <= 0.99


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_an_f1_lies_in_its_interval(cases):
    truth, called = np.array(cases).T
    n = int((truth | called).sum())
    assume(n > 0)
    f1 = f1_score(truth, called)
    low, high = f1_interval(f1, n)
    assert 0 <= low <= f1 + 1e-9
    assert f1 - 1e-9 <= high <= 1


def test_a_mean_is_students_and_never_a_point():
    low, high = mean_interval([0.6, 0.8, 1.0])
    assert (low, high) == pytest.approx((0.8 - 4.302653 * 0.2 / 3**0.5, 1.0), abs=1e-5)
    assert mean_interval([1.0, 1.0, 1.0]) == pytest.approx(proportion_interval(1.0, 3))
    assert mean_interval([0.5]) is None


def test_several_bags_of_a_patient_count_once():
    assert n_independent([1, 1, 0, 0, 0], ["p", "p", "q", "", ""]) == (1, 3)


def test_the_interval_is_students():
    from scipy.stats import ttest_1samp

    values = [0.1, 0.4, 0.35, 0.8]
    low, high = ttest_1samp(values, 0).confidence_interval(0.95)
    assert student_half_width(values) == pytest.approx((high - low) / 2)
    assert np.isnan(student_half_width([0.4]))
