import numpy as np
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from cytomil.mil.aggregators.discriminant import shrunk
from cytomil.mil.aggregators.kinds import find_kinds
from cytomil.mil.aggregators.witness_mixture import WitnessMixture


def cells(n, seed, d=4):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_is_the_log_ratio_of_scipys_densities():
    negatives = torch.cat([cells(60, 0), cells(60, 1) + 4])
    suspects, new = cells(10, 2) - 3, cells(30, 3)
    kinds = find_kinds(negatives, 0)
    covariance = shrunk(kinds.covariance).numpy()

    def log_density(mean):
        return multivariate_normal(mean, covariance).logpdf(new.numpy())

    normal = [log_density(m) + np.log(share) for m, share in zip(kinds.means, kinds.shares.numpy(), strict=True)]
    found = WitnessMixture.against(WitnessMixture.study(negatives, 0), suspects)(new)
    np.testing.assert_allclose(found, log_density(suspects.mean(0)) - logsumexp(normal, axis=0), rtol=1e-6, atol=1e-9)


def test_witnesses_between_two_normal_kinds_are_told_from_both():
    """No straight border does that."""
    apart = torch.tensor([8.0, 0, 0, 0])
    negatives = torch.cat([cells(100, 0) - apart, cells(100, 1) + apart])
    model = WitnessMixture.against(WitnessMixture.study(negatives, 0), cells(10, 2))
    assert model(cells(20, 3)).min() > model(negatives).max()
