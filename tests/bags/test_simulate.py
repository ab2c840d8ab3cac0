from __future__ import annotations

from itertools import repeat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytomil.bags import Instance, open_bag
from cytomil.bags.class_folders import Supply, make_plan, write_simulated_bags
from cytomil.bags.instance_labels import read_instance_labels
from cytomil.progress import Silent


def endless(label):
    n = 0
    while True:
        yield Instance(f"{label}-{n}", f"{label}-{n}".encode(), label=label)
        n += 1


def write(folder, seed=0, bag_size=10, rate=0.3, train=4, test=2):
    rng = np.random.default_rng(seed)
    plan = make_plan(bag_size, rate, train, test, rng)
    return plan, write_simulated_bags(folder, plan, repeat(Supply(endless(0), endless(1))), "here", rng, Silent())


@given(
    bag_size=st.integers(2, 2000),
    rate=st.floats(1e-4, 1),
    train=st.integers(0, 40),
    test=st.integers(0, 40),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_a_plan_is_half_positive_and_holds_at_least_one_witness(bag_size, rate, train, test, seed):
    plan = make_plan(bag_size, rate, train, test, np.random.default_rng(seed))
    assert (len(plan.train_labels), sum(plan.train_labels)) == (train, train // 2)
    assert (len(plan.test_labels), sum(plan.test_labels)) == (test, test // 2)
    assert plan.n_witnesses == max(1, round(rate * bag_size)) <= bag_size
    assert plan.witness_rate == plan.n_witnesses / bag_size
    assert plan.n_normal + plan.n_abnormal == bag_size * (train + test)
    assert plan.n_abnormal == plan.n_witnesses * (train // 2 + test // 2)


def test_the_order_of_labels_is_drawn():
    orders = {make_plan(10, 0.1, 8, 0, np.random.default_rng(seed)).train_labels for seed in range(10)}
    assert len(orders) > 3


@pytest.mark.parametrize(("rate", "witnesses"), [(0.3, 3), (0.001, 1), (0.34, 3), (1.0, 10)])
def test_bags_hold_the_true_rate_and_the_manifest_says_so(tmp_path, rate, witnesses):
    _, rows = write(tmp_path, rate=rate)
    assert {row.label for row in rows} == {0, 1}
    for row in rows:
        labels = read_instance_labels(tmp_path / row.path)
        assert len(labels) == row.n_instances == 10
        assert sum(labels.values()) == (witnesses if row.label else 0)
        assert row.witness_rate == sum(labels.values()) / 10


def test_rows_agree_with_the_files(tmp_path):
    plan, rows = write(tmp_path, train=3, test=2)
    assert [row.split for row in rows] == ["train"] * 3 + ["test"] * 2
    assert tuple(row.label for row in rows) == plan.train_labels + plan.test_labels
    assert len({row.patient_id for row in rows}) == len({row.bag_id for row in rows}) == 5
    for row in rows:
        bag = open_bag(tmp_path / row.path)
        assert (bag.info.bag_id, bag.info.label, bag.info.patient_id) == (row.bag_id, row.label, row.patient_id)
        assert (bag.info.source, bag.sha256) == ("here", row.sha256)
    assert {path.name for path in tmp_path.iterdir()} == {row.path for row in rows}


def test_no_cell_stands_twice(tmp_path):
    _, rows = write(tmp_path, train=6, test=4)
    images = [image for row in rows for image in open_bag(tmp_path / row.path).images()]
    assert len(set(images)) == len(images) == 100


def test_the_place_in_the_bag_does_not_give_witnesses_away(tmp_path):
    _, rows = write(tmp_path, bag_size=20, rate=0.1, train=60, test=0)
    places = []
    for row in rows:
        labels = list(read_instance_labels(tmp_path / row.path).values())
        places += [place for place, label in enumerate(labels) if label]
    assert len(places) == 60
    assert len(set(places)) > 12
    assert 6 < np.mean(places) < 13


def test_the_seed_decides(tmp_path):
    shas = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        _, rows = write(tmp_path / name, seed=seed)
        shas.append([row.sha256 for row in rows])
    assert shas[0] == shas[1]
    assert shas[0] != shas[2]
