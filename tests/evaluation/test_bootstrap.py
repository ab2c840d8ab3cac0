"""Figures by weights, and their intervals, against plain loops and closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytomil.evaluation.metrics import bag_metrics
from cytomil.evaluation.record import EvaluationRecord
from cytomil.experiments.bootstrap import METRICS, by_unit, estimate, estimate_differences, units_of
from cytomil.experiments.runs import Cell, Run
from tests.evaluation.conftest import record as made_up

tenths = st.integers(0, 10).map(lambda n: n / 10)


def run_of(record, path="r.json"):
    cell = Cell(record["name"], record["witness_rate"], record["seed"])
    card = EvaluationRecord.model_validate(record)
    return Run(cell, card.judge, card.bags_fingerprint, card, path)


@st.composite
def bag_lists(draw):
    """Bags of few patients, so that a patient often has several, of both labels."""
    n = draw(st.integers(2, 12))
    return [
        {
            "bag_id": f"b{i}",
            "patient_id": draw(st.sampled_from(["", "p", "q", "r"])),
            "label": draw(st.integers(0, 1)),
            "probability": (probability := draw(tenths)),
            "called_positive": probability >= 0.5,
            "recall_at_5pct": draw(st.none() | tenths),
            "recall_at_40pct": draw(st.none() | tenths),
            "auroc": draw(st.none() | tenths),
        }
        for i in range(n)
    ]


def naive(bags):
    """What the weighted figures must give for these bags, each as often as it stands in the list."""
    found = bag_metrics([b.probability for b in bags], [b.label for b in bags], 0.5)
    means = {}
    for key in ("recall_at_40pct", "recall_at_5pct", "auroc"):
        known = [value for b in bags if (value := getattr(b, key)) is not None]
        means[key] = np.mean(known) if known else None
    return [found.f1, means["recall_at_40pct"], means["recall_at_5pct"], means["auroc"], found.auroc]


BY_BAGS = [metric for metric in METRICS if metric.by_bags]


@given(bag_lists(), st.lists(st.integers(0, 3), min_size=15, max_size=15))
def test_weights_are_repetitions(bags, weights):
    card = EvaluationRecord.model_validate(made_up() | {"bags": bags})
    units = by_unit(card.bags)
    counts = np.array(weights[: len(units)], float)
    repeated = [bag for unit, times in zip(units, weights, strict=False) for bag in unit * times]
    for metric, expected in zip(BY_BAGS, naive(repeated), strict=True):
        found = float(metric.statistic(card)(counts))
        assert np.isnan(found) if expected is None else found == pytest.approx(expected), metric.key


@given(bag_lists())
def test_no_two_units_share_a_patient(bags):
    bags = EvaluationRecord.model_validate(made_up() | {"bags": bags}).bags
    names = [name for name, _ in units_of(bags)]
    assert len(names) == len(set(names))
    assert [bag.bag_id for unit in by_unit(bags) for bag in unit] != []
    assert sorted(bag.bag_id for unit in by_unit(bags) for bag in unit) == sorted(bag.bag_id for bag in bags)


def test_the_interval_is_that_of_every_possible_draw(make_record):
    record = make_record(lift=0.3)
    recalls = [b["recall_at_40pct"] for b in record["bags"] if b["label"]]
    means = [np.mean(draw) for draw in itertools.product(recalls, repeat=len(recalls))]
    found = estimate([run_of(record)], resamples=20_000, seed=0)["recall_at_40pct"]
    assert found.mean == pytest.approx(np.mean(recalls))
    assert found.low == pytest.approx(np.percentile(means, 2.5, method="inverted_cdf"), abs=0.01)
    assert found.high == pytest.approx(np.percentile(means, 97.5, method="inverted_cdf"), abs=0.01)


def test_the_interval_of_several_runs_is_over_runs_and_their_bags(make_record):
    records = [make_record(lift=0.1, seed=0), make_record(lift=0.6, seed=1)]
    recalls = [[b["recall_at_40pct"] for b in record["bags"] if b["label"]] for record in records]
    by_set = [[np.mean(draw) for draw in itertools.product(values, repeat=len(values))] for values in recalls]
    means = [
        np.mean([pair[run] for run in drawn])
        for pair in itertools.product(*by_set)
        for drawn in itertools.product(range(2), repeat=2)
    ]
    found = estimate([run_of(one) for one in records], resamples=20_000, seed=0)["recall_at_40pct"]
    assert found.mean == pytest.approx(np.mean(recalls))
    assert found.low == pytest.approx(np.percentile(means, 2.5, method="inverted_cdf"), abs=0.01)
    assert found.high == pytest.approx(np.percentile(means, 97.5, method="inverted_cdf"), abs=0.01)


def test_the_interval_is_no_narrower_than_the_runs_lie_apart(make_record):
    """Two seeds that disagree: their own bags are sure of each, and the interval must still span both."""
    records = [make_record(seed=seed) for seed in range(2)]
    for record, recall in zip(records, (0.2, 0.9), strict=True):
        record["bags"] = [b | {"recall_at_40pct": recall if b["label"] else None} for b in record["bags"]]
    found = estimate([run_of(one) for one in records], 1000, 0)["recall_at_40pct"]
    assert (found.low, found.high) == pytest.approx((0.2, 0.9))


def test_redrawn_figures_vary_over_runs_alone_and_are_absent_where_nothing_was_redrawn(make_record):
    redrawn = [{"redrawn": {"bag": {"auroc": auroc, "f1": 0.6}, "best_f1": 0.7}} for auroc in (0.8, 0.9)]
    records = [make_record(seed=seed, metrics=metrics) for seed, metrics in enumerate(redrawn)]
    both = estimate([run_of(one) for one in records], 500, 0)
    assert (both["redrawn_auroc"].mean, both["threshold_cost"].mean) == pytest.approx((0.85, 0.1))
    assert (both["redrawn_auroc"].low, both["redrawn_auroc"].high) == pytest.approx((0.8, 0.9))
    one = estimate([run_of(records[0])], 500, 0)["redrawn_auroc"]
    assert (one.mean, one.low, one.high) == (0.8, None, None)
    assert estimate([run_of(make_record())], 500, 0)["redrawn_auroc"].mean is None


def test_mean_and_sd_are_over_runs(make_record):
    records = [make_record(seed=seed) for seed in range(3)]
    single = [estimate([run_of(one)], 100, 0)["f1"].mean for one in records]
    found = estimate([run_of(one) for one in records], 100, 0)["f1"]
    assert found.by_run == pytest.approx(single)
    assert found.mean == pytest.approx(np.mean(single))
    assert found.sd == pytest.approx(np.std(single, ddof=1))


def test_a_run_differs_from_itself_by_nothing(make_record):
    pairs = [(run_of(make_record(seed=seed)),) * 2 for seed in range(3)]
    differences = estimate_differences(pairs, 200, 0)
    for metric in BY_BAGS:
        found = differences[metric.key]
        assert (found.mean, found.low, found.high) == (0, 0, 0)


def test_a_shift_common_to_all_bags_is_known_exactly_in_pairs_and_not_alone(make_record):
    pairs = []
    for seed in range(3):
        low = make_record("simclr", seed=seed)
        raised = [b | {"auroc": b["auroc"] - 0.25 if b["auroc"] is not None else None} for b in low["bags"]]
        pairs.append((run_of(low), run_of(low | {"bags": raised})))
    found = estimate_differences(pairs, 500, 0)["instance_auroc"]
    assert (found.mean, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))
    alone = estimate([pair[0] for pair in pairs], 500, 0)["instance_auroc"]
    assert alone.high - alone.low > 0.02


def test_encoders_of_several_seeds_on_one_bag_set_are_not_so_many_bags(make_record):
    """Ten encoders judged on the same six bags know as little of other bags as one does."""
    same = [make_record(seed=0) | {"seed": seed} for seed in range(10)]
    one, ten = (estimate([run_of(r) for r in records], 4000, 0)["recall_at_40pct"] for records in (same[:1], same))
    assert (ten.low, ten.high) == pytest.approx((one.low, one.high))


def test_a_single_patient_of_a_label_gives_no_interval(make_record):
    record = make_record()
    bags = [b | {"patient_id": "one" if b["label"] else b["bag_id"]} for b in record["bags"]]
    found = estimate([run_of(record | {"bags": bags})], 200, 0)["recall_at_40pct"]
    assert found.mean is not None
    assert (found.low, found.high) == (None, None)


def test_the_seed_settles_the_interval(make_record):
    runs = [run_of(make_record(lift=0.3))]
    first, again, other = (estimate(runs, 200, seed)["recall_at_40pct"] for seed in (0, 0, 1))
    assert first == again
    assert first != other
