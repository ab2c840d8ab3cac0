import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from cytomil.mil.aggregators.density_ratio import DensityRatio
from cytomil.mil.aggregators.neighbours import nearest_distances
from cytomil.mil.bags import TrainingBag
from cytomil.settings import FitMilSettings

SETTINGS = FitMilSettings(top_share=0.1)


def cells(n, seed, towards=None, d=4):
    values = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return values if towards is None else values * 0.2 + torch.tensor(towards)


def make_bags(patients, n_odd=6):
    """Every bag holds an odd normal cell, far from all others; positive ones six witnesses that are alike."""
    bags = []
    for i, patient in enumerate(patients):
        values = cells(60, i)
        values[-1] *= 20
        if i % 2:
            values[:n_odd] = cells(n_odd, 100 + i, towards=[5.0, 5.0, -5.0, 5.0])
        bags.append(TrainingBag(f"b{i}", values, i % 2, patient))
    return bags


def fitted(bags):
    (model,) = DensityRatio.fit(bags, SETTINGS, 1, 0)
    return model


def test_it_is_the_ratio_of_scikit_learns_tenth_distances():
    bags = make_bags([f"p{i}" for i in range(8)])
    new = cells(30, 999)

    def tenth(label):
        side = np.concatenate([bag.values.numpy() for bag in bags if bag.label == label])
        unit = side / np.linalg.norm(side, axis=1, keepdims=True)
        found = NearestNeighbors(n_neighbors=10).fit(unit)
        return found.kneighbors(new.numpy() / np.linalg.norm(new.numpy(), axis=1, keepdims=True))[0][:, -1]

    np.testing.assert_allclose(fitted(bags).distances(new).numpy(), tenth(0) / tenth(1), rtol=1e-3)


def test_witnesses_come_before_cells_that_are_merely_odd():
    model = fitted(make_bags([f"p{i}" for i in range(8)]))
    new = cells(60, 7)
    new[-1] *= 20
    new[:3] = cells(3, 8, towards=[5.0, 5.0, -5.0, 5.0])
    probability, scores = model.assess(new)
    assert set(scores.topk(3).indices.tolist()) == {0, 1, 2}
    assert probability > model.assess(new[3:])[0]


class Recorder(DensityRatio):
    """Notes which bags each scorer has learnt from, and whose cells it then measures."""

    @classmethod
    def learn(cls, bags, settings, seed):
        model = super().learn(bags, settings, seed)
        model.learnt = {tuple(row) for bag in bags for row in bag.values.tolist()}
        return model

    def distances(self, instances):
        Recorder.seen.append((self.learnt, {tuple(row) for row in instances.tolist()}))
        return super().distances(instances)


@pytest.mark.parametrize(
    "patients",
    [
        [f"p{i}" for i in range(8)],
        ["n", "a", "n", "b", "n", "c", "n", "d"],  # one patient has all negative bags: bags are held out
        ["a", "a", "b", "b", "c", "c", "d", "d"],  # every patient has bags of both labels
    ],
)
def test_the_curve_is_fitted_to_distances_from_cells_other_than_the_bags_own(patients):
    Recorder.seen = []
    list(Recorder.fit(make_bags(patients), SETTINGS, 1, 0))
    assert len(Recorder.seen) == 8
    assert all(not learnt & measured for learnt, measured in Recorder.seen)


def test_a_single_bag_of_a_label_is_measured_all_the_same():
    model = fitted(make_bags(["a", "b"]))
    probability, scores = model.assess(cells(20, 5))
    assert 0 <= probability <= 1
    assert torch.isfinite(scores).all()


def test_neighbours_leave_out_the_cell_itself():
    some = cells(50, 0)
    among = NearestNeighbors(n_neighbors=4).fit(some.numpy()).kneighbors(some.numpy())[0]
    np.testing.assert_allclose(nearest_distances(some, some, 3).numpy(), among[:, 1:], rtol=1e-3)
