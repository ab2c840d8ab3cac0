import numpy as np
import torch
from sklearn.covariance import shrunk_covariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from cytomil.mil.aggregators.discriminant import SHRINKAGE, Discriminant, shrunk


def cells(n, seed, d=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) * torch.linspace(0.5, 3, d)


def learnt(negatives, suspects):
    return Discriminant.against(Discriminant.study(negatives, 0), suspects)


def test_the_covariance_is_shrunk_as_scikit_learns():
    covariance = torch.cov(cells(80, 0).T)
    np.testing.assert_allclose(shrunk(covariance), shrunk_covariance(covariance.numpy(), SHRINKAGE))


def test_cells_are_told_apart_as_by_scikit_learn_where_suspects_are_as_spread_as_negatives():
    negatives = cells(200, 0)
    suspects = negatives + torch.tensor([1.0, 0, 0, 2, 0])
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE)
    reference.fit(np.vstack([negatives, suspects]), np.repeat([0, 1], 200))
    expected = reference.decision_function(cells(20, 1).numpy())
    found = learnt(negatives, suspects)(cells(20, 1)).numpy()
    # Not by much: scikit-learn shrinks in units of each feature's spread.
    assert np.corrcoef(found, expected)[0, 1] > 0.98


def test_it_is_nought_halfway_between_the_means():
    negatives, suspects = cells(50, 0), cells(9, 1) + 2
    halfway = (negatives.mean(dim=0) + suspects.mean(dim=0)) / 2
    assert abs(float(learnt(negatives, suspects)(halfway[None]))) < 1e-9


def test_one_cell_one_feature_and_cells_that_are_all_the_same_give_numbers():
    same = torch.ones(20, 5, dtype=torch.float64)
    assert learnt(same, cells(3, 1))(cells(4, 2)).isfinite().all()
    assert learnt(same[:1], cells(3, 1))(cells(4, 2)).isfinite().all()
    assert learnt(cells(20, 0, d=1), cells(3, 1, d=1) + 9)(cells(4, 2, d=1)).shape == (4,)
