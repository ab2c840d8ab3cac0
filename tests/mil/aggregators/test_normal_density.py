import numpy as np
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from cytomil.mil.aggregators.discriminant import shrunk
from cytomil.mil.aggregators.kinds import find_kinds
from cytomil.mil.aggregators.normal_density import NormalDensity


def cells(n, seed, d=4):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_is_minus_the_log_density_of_scipys_gaussians_less_a_constant():
    negatives, new = torch.cat([cells(60, 0), 2 * cells(60, 1) + 5]), cells(30, 3)
    kinds = find_kinds(negatives, 0)
    shares = kinds.shares.numpy()
    logs = []
    for i in range(len(kinds.means)):
        own = np.cov(kinds.cells.T, aweights=kinds.belongs[:, i], ddof=0)
        covariance = shrunk(torch.from_numpy(0.7 * own + 0.3 * kinds.covariance.numpy())).numpy()
        logs.append(multivariate_normal(kinds.means[i], covariance).logpdf(new.numpy()) + np.log(shares[i]))
    expected = -logsumexp(logs, axis=0)
    found = NormalDensity.learn(negatives, 0)(new).numpy()
    np.testing.assert_allclose(found - found[0], expected - expected[0], rtol=1e-5, atol=1e-6)


def test_the_farther_from_every_kind_the_less_likely():
    model = NormalDensity.learn(torch.cat([cells(100, 0) - 5, cells(100, 1) + 5]), 0)
    along = model(torch.linspace(5, 50, 10, dtype=torch.float64)[:, None].expand(-1, 4))
    assert (along.diff() > 0).all()
    between, inside = model(torch.tensor([[0.0] * 4, [5.0] * 4], dtype=torch.float64))
    assert between > inside


def test_cells_that_are_all_the_same_and_a_single_one_give_numbers():
    for n in (1, 50):
        assert NormalDensity.learn(torch.ones(n, 3, dtype=torch.float64), 0)(cells(5, 0, d=3)).isfinite().all()
