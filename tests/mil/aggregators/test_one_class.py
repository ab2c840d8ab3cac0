"""One-class scorers against numpy's and scikit-learn's own figures."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import svm
from sklearn.covariance import LedoitWolf
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors

from cytomil.mil.aggregators.one_class import (
    GaussianDensity,
    Mahalanobis,
    NearestNeighbours,
    OneClassSVM,
    mean_and_precision,
    squared_distances,
)
from cytomil.mil.aggregators.scorers import subsample
from cytomil.mil.bags import TrainingBag
from cytomil.mil.config import FitConfig

SETTINGS = FitConfig(top_fraction=0.1)


EVERY = pytest.mark.parametrize("kind", [Mahalanobis, NearestNeighbours, OneClassSVM, GaussianDensity])


def cells(n, seed=0, d=4):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * torch.linspace(0.5, 2, d)


def test_mahalanobis_is_scikit_learns():
    model = Mahalanobis.learn(cells(200), SETTINGS)
    expected = np.sqrt(LedoitWolf().fit(cells(200).double().numpy()).mahalanobis(cells(50, 1).double().numpy()))
    np.testing.assert_allclose(model.distances(cells(50, 1)).numpy(), expected, rtol=1e-5)


def test_a_scorer_is_made_of_bags_alone_or_of_cells_alone():
    (fitted,) = Mahalanobis.fit(make_bags([f"p{i}" for i in range(8)]))
    assert fitted.share == FitConfig().top_fraction
    assert Mahalanobis.learn(cells(200)).distances(cells(3)).shape == (3,)


def test_nearest_neighbours_are_scikit_learns_and_a_learnt_cell_is_no_neighbour_of_itself():
    model = NearestNeighbours.learn(cells(200), SETTINGS)
    found = NearestNeighbors(n_neighbors=6).fit(cells(200).numpy())
    distances, _ = found.kneighbors(cells(50, 1).numpy())
    np.testing.assert_allclose(model.distances(cells(50, 1)).numpy(), distances[:, :5].mean(1), rtol=1e-4)
    among, _ = found.kneighbors(cells(200).numpy())
    np.testing.assert_allclose(model.distances(cells(200)).numpy(), among[:, 1:].mean(1), rtol=1e-3)


def test_the_kernel_sum_is_scikit_learns_decision_function():
    model = OneClassSVM.learn(cells(200), SETTINGS)
    fitted = svm.OneClassSVM(nu=0.1, gamma=model.gamma).fit(cells(200).numpy())
    new = cells(50, 1)
    expected = fitted.score_samples(new.numpy())
    np.testing.assert_allclose(model.log_kernel_sum(new).exp().numpy(), expected, rtol=1e-3)
    far = torch.stack([new[0] * 100, new[0] * 200])
    assert model.distances(far)[1] > model.distances(far)[0] > model.distances(new).max()


def test_density_differs_from_scikit_learns_by_a_constant():
    model = GaussianDensity.learn(cells(200), SETTINGS)
    mixture = GaussianMixture(8, covariance_type="tied", reg_covar=1e-3, random_state=0).fit(
        cells(200).double().numpy()
    )
    new = cells(50, 1)
    difference = model.log_density(new).numpy() - mixture.score_samples(new.double().numpy())
    np.testing.assert_allclose(difference, difference[0], atol=1e-6)
    nearest = model.centres[model.log_density(model.centres).argmax()].float()
    assert model.distances(nearest.unsqueeze(0)).item() == pytest.approx(0, abs=1e-4)


def make_bags(patients, shift=4.0):
    bags = []
    for i, patient in enumerate(patients):
        values = cells(60, i)
        if i % 2:
            values[:6] += shift
        bags.append(TrainingBag(f"b{i}", values, i % 2, patient))
    return bags


@EVERY
def test_positive_bags_have_no_part_in_what_is_learnt(kind):
    patients = [f"p{i}" for i in range(8)]
    (one,), (other,) = (list(kind.fit(make_bags(patients, shift), SETTINGS)) for shift in (2.0, 50.0))
    torch.testing.assert_close(one.distances(cells(20, 99)), other.distances(cells(20, 99)), rtol=0, atol=0)


@EVERY
def test_the_probability_is_a_logistic_curve_of_the_log_mean_of_the_top(kind):
    (model,) = kind.fit(make_bags([f"p{i}" for i in range(8)]), SETTINGS)
    new = cells(40, 5)
    top = np.sort(model.distances(new).numpy())[-4:]
    expected = 1 / (1 + np.exp(-(model.slope.item() * np.log(top.mean()) + model.intercept.item())))
    assert model.assess(new)[0] == pytest.approx(expected, rel=1e-4)
    assert model.slope > 0


class Recorder(Mahalanobis):
    """Notes what each scorer has learnt from and which bags it then pools."""

    seen: ClassVar[list] = []

    @classmethod
    def learn(cls, kept, settings, options, seed):
        model = super().learn(kept, settings, options, seed)
        model.learnt = {tuple(row) for row in kept.tolist()}
        return model

    def distances(self, instances):
        Recorder.seen.append((self.learnt, {tuple(row) for row in instances.tolist()}))
        return super().distances(instances)


@pytest.mark.parametrize("patients", [[f"p{i}" for i in range(8)], ["n", "a", "n", "b", "n", "c", "n", "d"]])
def test_the_curve_is_fitted_to_distances_from_cells_other_than_the_bags_own(patients):
    Recorder.seen.clear()
    list(Recorder.fit(make_bags(patients), SETTINGS))
    assert len(Recorder.seen) == 8
    assert all(not learnt & pooled for learnt, pooled in Recorder.seen)


def test_a_subsample_is_drawn_without_replacement_and_by_its_seed():
    drawn = subsample(cells(100), 30, 0)
    assert len({tuple(row) for row in drawn.tolist()}) == 30
    assert torch.equal(drawn, subsample(cells(100), 30, 0))
    assert not torch.equal(drawn, subsample(cells(100), 30, 1))
    assert torch.equal(subsample(cells(20), 30, 0), cells(20))


@EVERY
def test_a_constant_dimension_does_no_harm(kind):
    bags = make_bags([f"p{i}" for i in range(8)])
    for bag in bags:
        bag.values[:, 1] = 0.0
    (model,) = kind.fit(bags, SETTINGS)
    probability, scores = model.assess(bags[1].values)
    assert np.isfinite(probability)
    assert torch.isfinite(scores).all()


def cells_of(n, dim, seed):
    return np.random.default_rng(seed).normal(size=(n, dim)) * np.linspace(0.1, 5, dim) + 3


@given(n=st.integers(3, 60), dim=st.integers(1, 40), seed=st.integers(0, 99))
def test_it_is_ledoit_and_wolfs_with_fewer_cells_than_dimensions_and_with_more(n, dim, seed):
    cells, others = cells_of(n, dim, seed), cells_of(7, dim, seed + 100)
    reference = LedoitWolf().fit(cells)
    mean, precision = mean_and_precision(cells)
    np.testing.assert_allclose(precision.numpy(), reference.precision_, rtol=1e-8, atol=1e-10)
    squared = squared_distances(torch.from_numpy(others).float(), mean, precision)
    assert squared.dtype == torch.float64
    np.testing.assert_allclose(squared.numpy(), reference.mahalanobis(others.astype(np.float32)), rtol=1e-6)


def test_cells_that_do_not_differ_have_no_spread_to_measure_by():
    mean, precision = mean_and_precision(np.ones((5, 3)))
    assert torch.equal(mean, torch.ones(3, dtype=torch.float64))
    assert torch.equal(precision, torch.zeros(3, 3, dtype=torch.float64))
