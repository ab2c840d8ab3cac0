"""The draw of resampled bags, on features whose answer is known."""

import argparse

import numpy as np
import pytest

from bench.int8_cost import ENGINE, Pool, draw, resampled
from cytomil.mil.ensemble import Assessment

OPTIONS = argparse.Namespace(bag_size=40, witness_rate=0.05, bags=10)


class ReadsTheFirstColumn:
    """Stands for a triage model that has understood its features: a cell's score is their first dimension."""

    def assess(self, values):
        return Assessment(float(values[:, 0].max()), values[:, 0])


@pytest.fixture
def labels():
    return np.array([0] * 300 + [1] * 60)


def test_a_resampled_bag_holds_its_witnesses_and_no_cell_twice(labels):
    chosen = resampled(labels, 40, 2, np.random.default_rng(0))
    assert len(set(chosen.tolist())) == 40 and labels[chosen].sum() == 2


def test_equal_features_cost_nothing(labels):
    values = np.random.default_rng(1).random((360, 3))
    told = draw(Pool(values, values, labels), ReadsTheFirstColumn(), np.random.default_rng(0), OPTIONS)
    assert told["eager"] == told[ENGINE]


def test_spoilt_features_cost_all(labels):
    good = np.stack([labels * 0.8 + 0.1, labels * 0], axis=1)
    told = draw(Pool(good, 1 - good, labels), ReadsTheFirstColumn(), np.random.default_rng(0), OPTIONS)
    assert told["eager"] == {"recall_at_5pct": 1.0, "bag_auroc": 1.0}
    # No positive bag is told from a negative one: each holds normal cells, which score highest.
    assert told[ENGINE] == {"recall_at_5pct": 0.0, "bag_auroc": 0.5}
