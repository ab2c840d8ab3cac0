import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from cytomil.mil.aggregators.pooled_scorer import PooledScorer


class FirstNumber(PooledScorer):
    def distances(self, instances):
        return instances[:, 0]

    @classmethod
    def fit(cls, bags, settings, epochs, seed):
        raise NotImplementedError


def called(pooled, labels, distances):
    """Probabilities of bags of twenty cells at one distance each, after a curve was fitted."""
    model = FirstNumber(1, share=0.1)
    model.calibrate(np.array(pooled), np.array(labels))
    return [model.assess(torch.full((20, 1), distance))[0] for distance in distances]


@given(seed=st.integers(0, 1000), shift=st.floats(-3, 3))
def test_more_suspicious_cells_never_make_a_bag_look_healthier_whatever_the_training_bags_say(seed, shift):
    labels = np.arange(12) % 2
    near, far = called(np.random.default_rng(seed).normal(size=12) + shift * labels, labels, (1.0, 2.0))
    assert 0 < near < far < 1


def test_a_curve_that_training_bags_do_not_support_is_nearly_flat():
    low, high = called([3, 2, 3, 2], [0, 1, 0, 1], (np.exp(2), np.exp(3)))
    assert 0.45 < low < high < 0.55


def test_bags_far_apart_are_called_for_what_they_are():
    low, high = called([1.0, 3.0, 1.1, 3.1], [0, 1, 0, 1], (np.exp(1), np.exp(3)))
    assert low < 0.3
    assert high > 0.7
