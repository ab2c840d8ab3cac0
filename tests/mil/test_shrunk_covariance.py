import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.covariance import LedoitWolf

from cytomil.mil.shrunk_covariance import mean_and_precision, squared_distances


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
