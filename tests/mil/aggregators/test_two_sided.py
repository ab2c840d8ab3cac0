from typing import ClassVar

import pytest
import torch

from cytomil.mil.aggregators.density_ratio import DensityRatio
from cytomil.mil.aggregators.self_paced import SelfPaced
from cytomil.mil.bags import TrainingBag
from cytomil.mil.config import FitMilConfig

SETTINGS = FitMilConfig(top_share=0.1)


def make_bags(patients):
    values = torch.randn(len(patients), 60, 4, generator=torch.Generator().manual_seed(0))
    return [TrainingBag(f"b{i}", values[i], i % 2, patient) for i, patient in enumerate(patients)]


def recording(kind):
    """A scorer that notes whose cells each one has learnt from, and whose it then measures."""

    class Recorder(kind):
        seen: ClassVar = []

        @classmethod
        def learn_from(cls, bags, settings, seed):
            model = super().learn_from(bags, settings, seed)
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
    list(recorder.fit(make_bags(patients), SETTINGS, 1, 0))
    assert len(recorder.seen) == 8
    assert all(not learnt & measured for learnt, measured in recorder.seen)


@pytest.mark.parametrize("kind", [DensityRatio, SelfPaced])
def test_a_single_bag_of_a_label_is_measured_all_the_same(kind):
    bags = make_bags(["a", "b"])
    (model,) = kind.fit(bags, SETTINGS, 1, 0)
    probability, scores = model.assess(bags[0].values[:20])
    assert 0 <= probability <= 1
    assert torch.isfinite(scores).all()
