from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

import cytomil
from cytomil.evaluation.metrics import (
    bag_metrics,
    bags_with_witness,
    expected_recall,
    instance_auroc,
    instance_average_precision,
    instance_metrics,
    n_in_fraction,
    recall_at_fraction,
    recall_at_k,
    review_until_first,
)

BAG_KEYS = {
    "n_bags",
    "n_positive",
    "threshold",
    "f1",
    "auroc",
    "auprc",
    "sensitivity",
    "specificity",
    "brier",
    "undefined",
}
INSTANCE_FIGURES = {
    "recall_at_k",
    "recall_at_1pct",
    "recall_at_5pct",
    "recall_at_10pct",
    "recall_at_40pct",
    "average_precision",
    "auroc",
    "review_until_first",
}

steady = settings(derandomize=True, deadline=None, max_examples=60, database=None)


@st.composite
def bags(draw: st.DrawFn, max_size: int = 30, levels: int = 6) -> tuple[list[float], list[int]]:
    """Few score levels make ties the rule rather than the exception; at least one witness."""
    size = draw(st.integers(1, max_size))
    scores = draw(st.lists(st.integers(-levels, levels).map(lambda n: n / 4), min_size=size, max_size=size))
    labels = draw(st.lists(st.integers(0, 1), min_size=size, max_size=size))
    labels[draw(st.integers(0, size - 1))] = 1
    return scores, labels


@st.composite
def calls(draw: st.DrawFn) -> tuple[list[float], list[int], float]:
    size = draw(st.integers(2, 30))
    probabilities = draw(st.lists(st.integers(0, 10).map(lambda n: n / 10), min_size=size, max_size=size))
    labels = [0, 1, *draw(st.lists(st.integers(0, 1), min_size=size - 2, max_size=size - 2))]
    return probabilities, labels, draw(st.integers(0, 11)) / 10


def every_review_order(scores: list[float], labels: list[int]) -> list[list[int]]:
    """Labels in each order of review that never puts a lower score before a higher one."""
    orders = itertools.permutations(range(len(scores)))
    return [
        [labels[i] for i in order]
        for order in orders
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]


def naive_auroc(scores: list[float], labels: list[int]) -> float:
    abnormal = [s for s, label in zip(scores, labels, strict=True) if label]
    normal = [s for s, label in zip(scores, labels, strict=True) if not label]
    wins = sum((a > b) + 0.5 * (a == b) for a in abnormal for b in normal)
    return wins / (len(abnormal) * len(normal))


def naive_average_precision(scores: list[float], labels: list[int]) -> float:
    total, area, before = sum(labels), 0.0, 0
    for level in sorted(set(scores), reverse=True):
        above = [label for s, label in zip(scores, labels, strict=True) if s >= level]
        area += (sum(above) - before) / total * sum(above) / len(above)
        before = sum(above)
    return area


# Against brute force


@steady
@given(bags(max_size=6, levels=1), st.integers(1, 8))
def test_recall_is_the_mean_over_all_tie_orders(bag: tuple[list[float], list[int]], k: int) -> None:
    orders = every_review_order(*bag)
    expected = np.mean([sum(order[:k]) / sum(order) for order in orders])
    assert recall_at_k(*bag, k) == pytest.approx(expected, abs=1e-12)


@steady
@given(bags(max_size=6, levels=1))
def test_review_until_first_is_the_mean_over_all_tie_orders(bag: tuple[list[float], list[int]]) -> None:
    expected = np.mean([order.index(1) + 1 for order in every_review_order(*bag)])
    assert review_until_first(*bag) == pytest.approx(expected, abs=1e-12)


@given(st.permutations(range(20)), st.sets(st.integers(0, 19), min_size=1), st.integers(1, 25))
@steady
def test_without_ties_sorting_is_enough(ranks: list[int], witnesses: set[int], k: int) -> None:
    labels = [int(i in witnesses) for i in range(20)]
    ranked = [labels[i] for i in sorted(range(20), key=lambda i: -ranks[i])]
    assert recall_at_k(ranks, labels, k) == pytest.approx(sum(ranked[:k]) / sum(labels))
    assert review_until_first(ranks, labels) == ranked.index(1) + 1


@steady
@given(bags())
def test_areas_agree_with_naive_loops(bag: tuple[list[float], list[int]]) -> None:
    assert instance_average_precision(*bag) == pytest.approx(naive_average_precision(*bag))
    if all(bag[1]):
        assert instance_auroc(*bag) is None
    else:
        assert instance_auroc(*bag) == pytest.approx(naive_auroc(*bag))


# Closed forms


@pytest.mark.parametrize("k", [1, 3, 5, 8, 20, 99])
def test_perfect_reversed_and_constant(k: int) -> None:
    n, m = 20, 5
    labels = [1] * m + [0] * (n - m)
    falling, rising, constant = list(range(n, 0, -1)), list(range(n)), [0.3] * n
    seen = min(k, n)
    assert recall_at_k(falling, labels, k) == pytest.approx(min(seen, m) / m)
    assert recall_at_k(rising, labels, k) == pytest.approx(max(0, seen - (n - m)) / m)
    assert recall_at_k(constant, labels, k) == pytest.approx(seen / n)


def test_areas_and_first_of_perfect_reversed_and_constant() -> None:
    labels = [1] * 5 + [0] * 15
    falling, rising, constant = list(range(20, 0, -1)), list(range(20)), [0.3] * 20
    assert (instance_auroc(falling, labels), instance_average_precision(falling, labels)) == (1.0, 1.0)
    assert (instance_auroc(rising, labels), instance_auroc(constant, labels)) == (0.0, 0.5)
    assert instance_average_precision(constant, labels) == pytest.approx(0.25)
    assert review_until_first(falling, labels) == 1
    assert review_until_first(rising, labels) == 16
    assert review_until_first(constant, labels) == pytest.approx(21 / 6)


def test_one_witness_among_many_equals_its_rank() -> None:
    scores = np.arange(10_000, dtype=float)
    labels = np.zeros(10_000, dtype=int)
    labels[9_899] = 1  # 101st from the top
    assert review_until_first(scores, labels) == 101
    assert recall_at_fraction(scores, labels, 0.01) == 0.0
    assert recall_at_fraction(scores, labels, 0.0101) == 1.0


# Properties


@steady
@given(bags())
def test_recall_rises_with_k_to_one(bag: tuple[list[float], list[int]]) -> None:
    n = len(bag[0])
    recalls = [recall_at_k(*bag, k) for k in range(1, n + 1)]
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(recalls))
    assert recalls[-1] == 1.0
    assert expected_recall(*bag, [0, *range(1, n + 1)]) == pytest.approx([0.0, *recalls])


@steady
@given(bags(), st.integers(1, 30), st.randoms(use_true_random=False))
def test_order_of_instances_and_scale_of_scores_are_immaterial(
    bag: tuple[list[float], list[int]], k: int, random: object
) -> None:
    scores, labels = np.asarray(bag[0]), np.asarray(bag[1])
    order = list(range(len(labels)))
    random.shuffle(order)  # type: ignore[attr-defined]
    figures = [
        lambda s, y: recall_at_k(s, y, k),
        lambda s, y: recall_at_fraction(s, y, 0.4),
        review_until_first,
        instance_average_precision,
        instance_auroc,
    ]
    for figure in figures:
        assert figure(scores[order], labels[order]) == figure(scores, labels)
        assert figure(np.exp(scores) * 7 - 3, labels) == figure(scores, labels)


@pytest.mark.parametrize(
    ("n", "fraction", "expected"),
    [
        (100, 0.07, 7),
        (100, 0.01, 1),
        (99, 0.01, 1),
        (101, 0.01, 2),
        (3, 0.001, 1),
        (5, 1.0, 5),
        (5, 0.0, 0),
        (7, 0.4, 3),
    ],
)
def test_a_fraction_is_rounded_up_but_not_by_binary_fractions(n: int, fraction: float, expected: int) -> None:
    assert n_in_fraction(n, fraction) == expected
    if fraction:
        scores, labels = np.arange(n), np.arange(n) % 2 == 0
        assert recall_at_fraction(scores, labels, fraction) == recall_at_k(scores, labels, expected)


# Faulty input


@pytest.mark.parametrize(
    ("scores", "labels", "k", "message"),
    [
        ([0.1, 0.2], [0, 0], 1, "no witness"),
        ([0.1, 0.2], [0, 1], 0, "at least 1"),
        ([0.1, 0.2], [0, 1], 1.5, "whole number"),
        ([0.1, 0.2], [0, 1, 1], 1, "same shape"),
        ([0.1, math.nan], [0, 1], 1, "finite"),
        ([0.1, math.inf], [0, 1], 1, "finite"),
        ([0.1, 0.2], [-1, 1], 1, "0 or 1"),
        ([[0.1], [0.2]], [[0], [1]], 1, "same shape"),
        ([], [], 1, "no witness"),
    ],
)
def test_recall_refuses(scores: list[float], labels: list[int], k: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recall_at_k(scores, labels, k)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, math.nan])
def test_a_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        recall_at_fraction([0.1], [1], fraction)


@pytest.mark.parametrize("figure", [review_until_first, instance_average_precision])
def test_ranking_figures_refuse_a_bag_without_witness(figure: object) -> None:
    with pytest.raises(ValueError, match="no witness"):
        figure([0.1, 0.2], [0, 0])  # type: ignore[operator]


@pytest.mark.parametrize(
    ("probabilities", "labels", "threshold", "message"),
    [
        ([0.1, 1.2], [0, 1], 0.5, "between 0 and 1"),
        ([-0.1, 0.2], [0, 1], 0.5, "between 0 and 1"),
        ([0.1, 0.2], [0, 2], 0.5, "0 or 1"),
        ([0.1, 0.2], [0, 1], math.nan, "threshold"),
        ([0.1, 0.2], [0, 1], math.inf, "threshold"),
        ([0.1, math.nan], [0, 1], 0.5, "finite"),
        ([0.1], [0, 1], 0.5, "same shape"),
    ],
)
def test_bag_metrics_refuse(probabilities: list[float], labels: list[int], threshold: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bag_metrics(probabilities, labels, threshold)


# Bags


@steady
@given(calls())
def test_bag_metrics_agree_with_scikit_learn(case: tuple[list[float], list[int], float]) -> None:
    probabilities, labels, threshold = case
    found = bag_metrics(probabilities, labels, threshold)
    called = [p >= threshold for p in probabilities]
    assert found.undefined == {}
    assert found.f1 == pytest.approx(reference.f1_score(labels, called, zero_division=0.0))
    assert found.sensitivity == pytest.approx(reference.recall_score(labels, called))
    assert found.specificity == pytest.approx(reference.recall_score(labels, called, pos_label=0))
    assert found.auroc == pytest.approx(naive_auroc(probabilities, labels))
    assert found.auprc == pytest.approx(reference.average_precision_score(labels, probabilities))
    assert (found.n_bags, found.n_positive, found.threshold) == (len(labels), sum(labels), threshold)


def test_a_probability_at_the_threshold_is_called_positive() -> None:
    found = bag_metrics([0.5, 0.49], [1, 0], 0.5)
    assert (found.sensitivity, found.specificity, found.f1) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("probabilities", "labels", "nones"),
    [
        ([], [], {"f1", "auroc", "auprc", "sensitivity", "specificity", "brier"}),
        ([0.1, 0.2], [0, 0], {"f1", "auroc", "auprc", "sensitivity"}),
        ([0.1, 0.9], [0, 0], {"auroc", "auprc", "sensitivity"}),
        ([0.1, 0.9], [1, 1], {"auroc", "auprc", "specificity"}),
        ([0.1, 0.2], [1, 1], {"auroc", "auprc", "specificity"}),
        ([0.1, 0.2], [0, 1], set()),
    ],
)
def test_undefined_bag_figures_are_none_with_a_reason(
    probabilities: list[float], labels: list[int], nones: set[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = bag_metrics(probabilities, labels, 0.5).to_dict()
    assert {key for key, value in plain.items() if value is None} == nones == set(plain["undefined"])
    assert all(plain["undefined"].values())


def test_f1_is_zero_not_undefined_when_the_only_calls_are_wrong() -> None:
    assert bag_metrics([0.9, 0.1], [0, 0], 0.5).f1 == 0.0
    assert bag_metrics([0.1, 0.1], [0, 1], 0.5).f1 == 0.0


def test_bag_dictionary_is_plain_json() -> None:
    plain = bag_metrics(np.array([0.2, 0.9], dtype=np.float32), np.array([0, 1]), np.float64(0.5)).to_dict()
    assert set(plain) == BAG_KEYS
    assert {type(value) for value in plain.values()} == {int, float, dict}
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


# Instances over bags

POSITIVE = ([0.9, 0.1, 0.2, 0.3, 0.0], [1, 0, 0, 0, 0])
LATE = ([0.9, 0.1, 0.2, 0.3, 0.0], [0, 1, 0, 0, 0])
NEGATIVE = ([0.9, 0.1], [0, 0])
UNKNOWN = ([0.9, 0.1, 0.5], [1, 0, -1])
ALL_WITNESS = ([0.9, 0.1], [1, 1])


def test_means_over_the_bags_with_a_witness() -> None:
    found = instance_metrics([POSITIVE, NEGATIVE, LATE])
    assert (found.n_bags, found.k, found.left_out, found.undefined) == (2, None, 0, {})
    assert found.recall_at_k == found.recall_at_40pct == 0.5
    assert found.recall_at_1pct == found.recall_at_10pct == 0.5
    assert found.review_until_first == 2.5
    assert found.average_precision == pytest.approx((1 + 1 / 4) / 2)
    assert found.auroc == pytest.approx((1 + 1 / 4) / 2)


@steady
@given(st.lists(bags(), min_size=1, max_size=4), st.integers(1, 40))
def test_means_are_those_of_the_single_bags(many: list[tuple[list[float], list[int]]], k: int) -> None:
    found = instance_metrics(many, k)
    assert found.k == k
    assert found.recall_at_k == pytest.approx(np.mean([recall_at_k(*bag, k) for bag in many]))
    assert found.recall_at_5pct == pytest.approx(np.mean([recall_at_fraction(*bag, 0.05) for bag in many]))
    assert found.recall_at_40pct == pytest.approx(np.mean([recall_at_fraction(*bag, 0.4) for bag in many]))
    assert found.review_until_first == pytest.approx(np.mean([review_until_first(*bag) for bag in many]))
    defined = [area for bag in many if (area := instance_auroc(*bag)) is not None]
    assert found.auroc == (pytest.approx(np.mean(defined)) if defined else None)


def test_a_bag_with_an_unknown_label_is_left_out_and_said_so() -> None:
    found = instance_metrics([POSITIVE, UNKNOWN])
    assert (found.n_bags, found.left_out, found.recall_at_k) == (1, 1, 1.0)
    assert set(found.undefined) == {"left_out"}
    assert "1 of 2" in found.undefined["left_out"]
    usable, left_out = bags_with_witness([UNKNOWN, NEGATIVE, POSITIVE])
    assert (len(usable), left_out) == (1, 1)
    assert UNKNOWN[1] == [1, 0, -1]


@pytest.mark.parametrize(
    ("many", "reason"),
    [([], "no bag with a witness"), ([NEGATIVE], "no bag with a witness"), ([UNKNOWN], "all instance labels known")],
)
def test_undefined_instance_figures_are_none_with_a_reason(many: list, reason: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = instance_metrics(many).to_dict()
    assert {key for key, value in plain.items() if value is None} == INSTANCE_FIGURES | {"k"}
    assert set(plain["undefined"]) - {"left_out"} == INSTANCE_FIGURES
    assert all(reason in plain["undefined"][name] for name in INSTANCE_FIGURES)


def test_auroc_alone_is_undefined_when_every_instance_is_a_witness() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = instance_metrics([ALL_WITNESS], k=1)
        mixed = instance_metrics([ALL_WITNESS, POSITIVE], k=1)
    assert alone.auroc is None
    assert set(alone.undefined) == {"auroc"}
    assert alone.recall_at_k == 0.5
    assert mixed.auroc == 1.0


def test_instance_dictionary_is_plain_json() -> None:
    plain = instance_metrics([POSITIVE, UNKNOWN], k=np.int64(2)).to_dict()
    assert set(plain) == INSTANCE_FIGURES | {"n_bags", "k", "undefined"}
    assert {type(value) for value in plain.values()} == {int, float, dict}
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


@pytest.mark.parametrize("many", [[([0.1], [2])], [([0.1, math.nan], [0, -1])], [([0.1], [0, 1])]])
def test_faulty_bags_are_refused_even_if_they_would_not_count(many: list) -> None:
    with pytest.raises(ValueError, match=r"labels|finite"):
        instance_metrics(many)


def test_a_k_below_one_is_refused_without_any_bag() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        instance_metrics([], k=0)


def test_importing_stays_quick() -> None:
    code = (
        "import sys, cytomil.evaluation.metrics, cytomil.evaluation.plots; "
        "assert not {'sklearn', 'matplotlib', 'torch', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(cytomil.__file__).parents[1])
