from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytomil.evaluation.metrics import bag_metrics, instance_metrics, recall_at_fraction
from cytomil.evaluation.record import FRACTIONS_REVIEWED, pr_curve_points, recall_by_k_points, roc_curve_points

steady = settings(derandomize=True, deadline=None, max_examples=60, database=None)
both_classes = st.lists(st.tuples(st.integers(0, 10), st.integers(0, 1)), max_size=30).map(
    lambda pairs: ([0.3, 0.6, *(p / 10 for p, _ in pairs)], [1, 0, *(label for _, label in pairs)])
)


def random_bag(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = (random.random(n) < 0.1).astype(int)
    labels[0] = 1
    return np.round(random.standard_normal(n) + labels, 1), labels


@steady
@given(both_classes)
def test_roc_rises_from_origin_to_corner_and_encloses_auroc(bags: tuple[list[float], list[int]]) -> None:
    rows = roc_curve_points(*bags)
    fpr, tpr = [row["fpr"] for row in rows], [row["tpr"] for row in rows]
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0.0, 0.0, 1.0, 1.0)
    assert fpr == sorted(fpr)
    assert tpr == sorted(tpr)
    assert np.trapezoid(tpr, fpr) == pytest.approx(bag_metrics(*bags, 0.5).auroc)


@steady
@given(both_classes)
def test_steps_under_the_pr_curve_add_up_to_auprc(bags: tuple[list[float], list[int]]) -> None:
    rows = pr_curve_points(*bags)
    assert rows[0] == {"recall": 0.0, "precision": 1.0}
    assert rows[-1]["recall"] == 1.0
    assert rows[-1]["precision"] == pytest.approx(np.mean(bags[1]))
    area = sum((b["recall"] - a["recall"]) * b["precision"] for a, b in itertools.pairwise(rows))
    assert area == pytest.approx(bag_metrics(*bags, 0.5).auprc)


@steady
@given(both_classes)
def test_every_called_set_lies_on_the_curves(bags: tuple[list[float], list[int]]) -> None:
    points = {(round(row["recall"], 9), round(row["precision"], 9)) for row in pr_curve_points(*bags)}
    probabilities, labels = np.asarray(bags[0]), np.asarray(bags[1])
    for threshold in bags[0]:
        called = probabilities >= threshold
        recall, precision = labels[called].sum() / labels.sum(), labels[called].mean()
        assert (round(recall, 9), round(precision, 9)) in points


@pytest.mark.parametrize("labels", [[0, 0], [1, 1]])
def test_one_class_has_no_curve(labels: list[int]) -> None:
    assert roc_curve_points([0.1, 0.2], labels) == []
    assert pr_curve_points([0.1, 0.2], labels) == []
    assert roc_curve_points([], []) == []


@pytest.mark.parametrize("curve", [roc_curve_points, pr_curve_points])
def test_curves_refuse_what_is_no_probability(curve: object) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        curve([0.1, 2.0], [0, 1])  # type: ignore[operator]


def test_shares_reviewed_are_whole_percents_and_finer_below_ten() -> None:
    assert {n / 100 for n in range(101)} <= set(FRACTIONS_REVIEWED)
    assert list(FRACTIONS_REVIEWED) == sorted(set(FRACTIONS_REVIEWED))
    assert sum(share < 0.10 for share in FRACTIONS_REVIEWED) == 100


def test_recall_by_k_agrees_with_the_figures() -> None:
    bags = [random_bag(1, 300), random_bag(2, 57), ([0.5, 0.1], [0, 0]), ([0.5, 0.1], [1, -1])]
    rows = {row["fraction_reviewed"]: row for row in recall_by_k_points(bags)}
    figures = instance_metrics(bags)
    for share, name in [(0.01, "1pct"), (0.05, "5pct"), (0.10, "10pct"), (0.40, "40pct")]:
        assert rows[share]["recall"] == pytest.approx(getattr(figures, f"recall_at_{name}"))
    assert rows[0.0] == {"fraction_reviewed": 0.0, "recall": 0.0, "random": 0.0}
    assert rows[1.0] == {"fraction_reviewed": 1.0, "recall": 1.0, "random": 1.0}


def test_recall_by_k_never_falls_and_random_is_what_a_constant_score_gives() -> None:
    labels = random_bag(3, 41)[1]
    rows = recall_by_k_points([(np.zeros(41), labels), (np.zeros(7), [1, 0, 0, 0, 0, 0, 1])])
    recalls = [row["recall"] for row in rows]
    assert recalls == pytest.approx([row["random"] for row in rows])
    assert recalls == sorted(recalls)
    assert all(row["random"] >= row["fraction_reviewed"] - 1e-12 for row in rows)


def test_random_is_the_mean_of_shuffled_scores() -> None:
    random, labels = np.random.default_rng(0), random_bag(4, 50)[1]
    shuffled = [recall_at_fraction(random.permutation(50), labels, 0.25) for _ in range(3000)]
    row = next(row for row in recall_by_k_points([(np.arange(50), labels)]) if row["fraction_reviewed"] == 0.25)
    assert row["random"] == pytest.approx(np.mean(shuffled), abs=0.01)


def test_no_usable_bag_gives_no_rows_and_rows_are_plain() -> None:
    assert recall_by_k_points([]) == []
    assert recall_by_k_points([([0.5, 0.1], [0, 0])]) == []
    rows = recall_by_k_points([random_bag(5, 30)])
    assert {type(value) for row in rows for value in row.values()} == {float}
    assert json.loads(json.dumps(rows)) == rows
