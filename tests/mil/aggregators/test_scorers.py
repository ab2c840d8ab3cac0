"""What scorers without epochs share: the logistic curve, and bags held out for it."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cytomil.mil.aggregators.one_class import DensityRatio
from cytomil.mil.aggregators.scorers import PooledScorer
from cytomil.mil.aggregators.self_paced import SelfPaced
from cytomil.mil.bags import TrainingBag
from cytomil.mil.config import FitConfig


class FirstNumber(PooledScorer):
    def distances(self, instances):
        return instances[:, 0]

    @classmethod
    def fit(cls, bags, settings, options, epochs, seed):
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


SETTINGS = FitConfig(top_fraction=0.1)


def make_bags(patients):
    values = torch.randn(len(patients), 60, 4, generator=torch.Generator().manual_seed(0))
    return [TrainingBag(f"b{i}", values[i], i % 2, patient) for i, patient in enumerate(patients)]


def recording(kind):
    """A scorer that notes whose cells each one has learnt from, and whose it then measures."""

    class Recorder(kind):
        seen: ClassVar = []

        @classmethod
        def learn_from(cls, bags, settings, options, seed):
            model = super().learn_from(bags, settings, options, seed)
            model.learnt = {tuple(row) for bag in bags for row in bag.values.tolist()}
            return model

        def distances(self, instances):
            self.seen.append((self.learnt, {tuple(row) for row in instances.tolist()}))
            return super().distances(instances)

    return Recorder


@pytest.mark.parametrize("kind", [DensityRatio, SelfPaced])
@pytest.mark.parametrize(
    "patients",
    [
        [f"p{i}" for i in range(8)],
        ["n", "a", "n", "b", "n", "c", "n", "d"],  # one patient has all negative bags: bags are held out
        ["a", "a", "b", "b", "c", "c", "d", "d"],  # every patient has bags of both labels
    ],
)
def test_the_curve_is_fitted_to_suspicions_by_those_who_did_not_see_the_bag(kind, patients):
    recorder = recording(kind)
    list(recorder.fit(make_bags(patients), SETTINGS))
    assert len(recorder.seen) == 8
    assert all(not learnt & measured for learnt, measured in recorder.seen)


@pytest.mark.parametrize("kind", [DensityRatio, SelfPaced])
def test_a_single_bag_of_a_label_is_measured_all_the_same(kind):
    bags = make_bags(["a", "b"])
    (model,) = kind.fit(bags, SETTINGS)
    probability, scores = model.assess(bags[0].values[:20])
    assert 0 <= probability <= 1
    assert torch.isfinite(scores).all()
