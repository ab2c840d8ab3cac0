"""The mixture of one covariance, against scikit-learn's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture

from cytomil.mil.aggregators.tied_mixture import TiedMixture


def cells(n: int, dim: int, n_kinds: int, seed: int) -> torch.Tensor:
    """Correlated cells of some kinds."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    centres = 2 * torch.randn(n_kinds, dim, generator=generator, dtype=torch.float64)
    kind = torch.randint(n_kinds, (n,), generator=generator)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64) @ mixing + centres[kind] + 3


@settings(deadline=None, max_examples=20)
@given(dim=st.integers(1, 12), n_kinds=st.integers(1, 5), n=st.integers(100, 400), seed=st.integers(0, 99))
def test_it_is_scikit_learns(dim, n_kinds, n, seed):
    given = cells(n, dim, n_kinds, seed)
    theirs = GaussianMixture(n_kinds, covariance_type="tied", reg_covar=1e-3, random_state=seed, max_iter=200)
    theirs.fit(given.numpy())
    ours = TiedMixture.fit(given, n_kinds, 200, seed)
    for found, wanted in (
        (ours.means, theirs.means_),
        (ours.shares, theirs.weights_),
        (ours.covariance, theirs.covariances_),
        (ours.belongs(given), theirs.predict_proba(given.numpy())),
    ):
        torch.testing.assert_close(found, torch.from_numpy(wanted), rtol=1e-5, atol=1e-6)


def test_one_kind_is_mean_and_covariance():
    given = cells(200, 3, 2, 0)
    found = TiedMixture.fit(given, 1, 10, 0)
    torch.testing.assert_close(found.means[0], given.mean(dim=0))
    torch.testing.assert_close(found.covariance, torch.cov(given.T, correction=0) + 1e-3 * torch.eye(3))


@pytest.mark.parametrize(("n", "n_kinds"), [(2, 1), (39, 1), (40, 2), (400, 4)])
def test_a_kind_takes_twenty_cells(n, n_kinds):
    assert len(TiedMixture.fit(cells(n, 2, 1, 0), 4, 30, 0).means) == n_kinds


def test_identical_cells_are_of_one_place():
    found = TiedMixture.fit(torch.ones(100, 3, dtype=torch.float64), 4, 30, 0)
    assert torch.isfinite(found.belongs(torch.ones(5, 3, dtype=torch.float64))).all()
