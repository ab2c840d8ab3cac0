"""Scorers by nearest neighbours, against scikit-learn's."""

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors

from cytomil.mil.aggregators.one_class import DensityRatio, nearest_distances
from cytomil.mil.bags import TrainingBag
from cytomil.mil.config import FitConfig


def some_cells(n, seed, d=4):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_neighbours_leave_out_the_cell_itself():
    some = some_cells(50, 0)
    among = NearestNeighbors(n_neighbors=4).fit(some.numpy()).kneighbors(some.numpy())[0]
    np.testing.assert_allclose(nearest_distances(some, some, 3).numpy(), among[:, 1:], rtol=1e-3)


SETTINGS = FitConfig(top_fraction=0.1)


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
    (model,) = DensityRatio.fit(bags, SETTINGS)
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


def test_of_huge_bags_ten_thousand_cells_a_side_are_remembered():
    bags = [TrainingBag(f"b{i}", torch.randn(12_000, 3), i % 2, f"p{i}") for i in range(2)]
    model = DensityRatio.learn_from(bags, SETTINGS)
    assert model.negatives.shape == model.positives.shape == (10_000, 3)


def test_witnesses_come_before_cells_that_are_merely_odd():
    model = fitted(make_bags([f"p{i}" for i in range(8)]))
    new = cells(60, 7)
    new[-1] *= 20
    new[:3] = cells(3, 8, towards=[5.0, 5.0, -5.0, 5.0])
    probability, scores = model.assess(new)
    assert set(scores.topk(3).indices.tolist()) == {0, 1, 2}
    assert probability > model.assess(new[3:])[0]
