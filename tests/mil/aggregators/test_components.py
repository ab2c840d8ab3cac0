import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from cytomil.mil.aggregators.components import Components


def cells(n=50, d=6, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * torch.linspace(0.5, 3, d) + 7


def test_they_are_scikit_learns_whitened_components():
    model = Components.learn(cells(), 4)
    expected = PCA(4, whiten=True, svd_solver="covariance_eigh").fit(cells().double().numpy())
    np.testing.assert_allclose(
        model(cells(9, seed=1)), expected.transform(cells(9, seed=1).double().numpy()), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(model(cells()).var(dim=0), torch.ones(4, dtype=torch.float64), rtol=1e-5, atol=0)


def test_there_are_no_more_than_the_cells_have_and_what_does_not_vary_stays_small():
    assert Components.learn(cells(3), 64)(cells()).shape == (50, 2)
    flat = torch.cat([cells(), torch.ones(50, 2)], dim=1)
    model = Components.learn(flat, 64)
    assert model(flat).shape == (50, 8)
    assert model(flat).abs().max() < 10


def test_few_components_among_many_are_the_same_as_by_full_decomposition():
    many = cells(120, 90)
    model = Components.learn(many, 5)
    expected = PCA(5, whiten=True, svd_solver="full").fit(many.double().numpy())
    np.testing.assert_allclose(model(many), expected.transform(many.double().numpy()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 3])
def test_cells_that_vary_in_less_than_there_are_components_give_finite_ones(rank):
    flat = cells(100, 90) * (torch.arange(90) < rank) + 5
    model = Components.learn(flat, 8)
    assert model(flat).isfinite().all()
    assert model(flat).abs().max() < 10
