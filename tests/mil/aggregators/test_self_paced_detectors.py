"""Self-paced's detectors and their mixture, against scipy's and scikit-learn's figures."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.covariance import shrunk_covariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.mixture import GaussianMixture

from cytomil.mil.aggregators.self_paced_detectors import (
    MATCHED_FRACTIONS,
    SHRINKAGE,
    Discriminant,
    MatchedContrast,
    NormalDensity,
    TiedMixture,
    WitnessMixture,
    find_kinds,
    shrunk,
    squared_to_each,
)


def uneven_cells(n, seed, d=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) * torch.linspace(0.5, 3, d)


def learnt(negatives, suspects):
    return Discriminant.fit_contrast(Discriminant.fit_background(negatives, 0), suspects)


def test_the_covariance_is_shrunk_as_scikit_learns():
    covariance = torch.cov(uneven_cells(80, 0).T)
    np.testing.assert_allclose(shrunk(covariance), shrunk_covariance(covariance.numpy(), SHRINKAGE))


def test_cells_are_told_apart_as_by_scikit_learn_where_suspects_are_as_spread_as_negatives():
    negatives = uneven_cells(200, 0)
    suspects = negatives + torch.tensor([1.0, 0, 0, 2, 0])
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE)
    reference.fit(np.vstack([negatives, suspects]), np.repeat([0, 1], 200))
    expected = reference.decision_function(uneven_cells(20, 1).numpy())
    found = learnt(negatives, suspects)(uneven_cells(20, 1)).numpy()
    # Not by much: scikit-learn shrinks in units of each feature's spread.
    assert np.corrcoef(found, expected)[0, 1] > 0.98


def test_it_is_nought_halfway_between_the_means():
    negatives, suspects = uneven_cells(50, 0), uneven_cells(9, 1) + 2
    halfway = (negatives.mean(dim=0) + suspects.mean(dim=0)) / 2
    assert abs(float(learnt(negatives, suspects)(halfway[None]))) < 1e-9


def test_one_cell_one_feature_and_cells_that_are_all_the_same_give_numbers():
    same = torch.ones(20, 5, dtype=torch.float64)
    assert learnt(same, uneven_cells(3, 1))(uneven_cells(4, 2)).isfinite().all()
    assert learnt(same[:1], uneven_cells(3, 1))(uneven_cells(4, 2)).isfinite().all()
    assert learnt(uneven_cells(20, 0, d=1), uneven_cells(3, 1, d=1) + 9)(uneven_cells(4, 2, d=1)).shape == (4,)


def cells(n, seed, d=4):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_is_minus_the_log_density_of_scipys_gaussians_less_a_constant():
    negatives, new = torch.cat([cells(60, 0), 2 * cells(60, 1) + 5]), cells(30, 3)
    kinds, fitted_to = find_kinds(negatives, 0)
    shares = kinds.weights.numpy()
    logs = []
    for i in range(len(kinds.means)):
        own = np.cov(fitted_to.T, aweights=kinds.responsibilities(fitted_to)[:, i], ddof=0)
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


def test_it_is_the_log_ratio_of_scipys_densities():
    negatives = torch.cat([cells(60, 0), cells(60, 1) + 4])
    suspects, new = cells(10, 2) - 3, cells(30, 3)
    kinds, _ = find_kinds(negatives, 0)
    covariance = shrunk(kinds.covariance).numpy()

    def log_density(mean):
        return multivariate_normal(mean, covariance).logpdf(new.numpy())

    normal = [log_density(m) + np.log(share) for m, share in zip(kinds.means, kinds.weights.numpy(), strict=True)]
    found = WitnessMixture.fit_contrast(WitnessMixture.fit_background(negatives, 0), suspects)(new)
    np.testing.assert_allclose(found, log_density(suspects.mean(0)) - logsumexp(normal, axis=0), rtol=1e-6, atol=1e-9)


def test_witnesses_between_two_normal_kinds_are_told_from_both():
    """No straight border does that."""
    apart = torch.tensor([8.0, 0, 0, 0])
    negatives = torch.cat([cells(100, 0) - apart, cells(100, 1) + apart])
    model = WitnessMixture.fit_contrast(WitnessMixture.fit_background(negatives, 0), cells(10, 2))
    assert model(cells(20, 3)).min() > model(negatives).max()


def odd_cells(n, seed, oddness=1.5, witnesses=0, d=6):
    """Cells whose first coordinate is how odd they are; witnesses are as odd as the oddest, and far out in the second."""
    cells = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    cells[:, 0] *= oddness
    if witnesses:
        cells[:witnesses, 0] = 3.0 * oddness
        cells[:witnesses, 1] += 4.0
    return cells


def contrast(negatives, positives, penalty=0.0):
    suspicion = torch.cat(negatives)[:, 0], torch.cat(positives)[:, 0]
    return MatchedContrast.learn(negatives, positives, suspicion, torch.full((6,), penalty, dtype=torch.float64))


def test_it_equals_the_formula_written_out():
    negatives, positives = [odd_cells(80, 0), odd_cells(120, 1)], [odd_cells(100, 2, witnesses=4)]
    found = contrast(negatives, positives, penalty=0.7)
    n, p = torch.cat(negatives).numpy(), torch.cat(positives).numpy()
    weight = np.zeros(6)
    for fraction in MATCHED_FRACTIONS:
        threshold = np.quantile(n[:, 0], 1 - fraction)
        difference = p[p[:, 0] >= threshold].mean(0) - n[n[:, 0] >= threshold].mean(0)
        direction = np.linalg.inv(np.cov(n.T, ddof=0) + 0.7 * np.eye(6)) @ difference
        weight += direction / (n @ direction).std() / len(MATCHED_FRACTIONS)
    np.testing.assert_allclose(found.weight, weight, rtol=1e-8)
    cells = odd_cells(20, 9)
    expected = np.maximum((cells.numpy() - n.mean(0)) @ weight, 0)
    np.testing.assert_allclose(found(cells), expected, rtol=1e-8, atol=1e-12)


def test_what_odd_cells_of_both_labels_share_counts_for_little():
    model = contrast([odd_cells(4_000, 0)], [odd_cells(4_000, 1, witnesses=60)])
    assert abs(model.weight[1]) > 5 * abs(model.weight[0])


def test_a_greater_penalty_changes_the_direction_not_the_scale():
    negatives, positives = [odd_cells(500, 0)], [odd_cells(500, 1, witnesses=20)]
    cells = odd_cells(5_000, 5)
    spreads = [
        float(((cells - m.middle) @ m.weight).std()) for m in (contrast(negatives, positives, x) for x in (0.0, 50.0))
    ]
    assert 0.5 < spreads[0] / spreads[1] < 2


def test_without_suspects_past_the_negatives_it_says_nothing():
    model = contrast([odd_cells(100, 0)], [odd_cells(100, 1) - 100])
    assert not model(odd_cells(10, 3)).any()


def cells_in_space(n, seed, d=3):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_kinds_far_apart_are_found():
    centres = torch.tensor([[0.0, 0, 0], [20, 0, 0], [0, 20, 0], [0, 0, 20]], dtype=torch.float64)
    found, fitted_to = find_kinds(torch.cat([cells_in_space(100, i) + centre for i, centre in enumerate(centres)]), 0)
    assert (squared_to_each(found.means, centres).amin(dim=0) < 0.5).all()
    torch.testing.assert_close(found.weights, torch.full((4,), 0.25, dtype=torch.float64))
    torch.testing.assert_close(found.covariance, torch.eye(3, dtype=torch.float64), atol=0.2, rtol=0)
    assert found.responsibilities(fitted_to).shape == (400, 4)


@pytest.mark.parametrize(("n", "n_kinds"), [(1, 1), (2, 1), (39, 1), (40, 2), (500, 4)])
def test_few_cells_are_of_few_kinds(n, n_kinds):
    assert len(find_kinds(cells_in_space(n, 0), 0)[0].means) == n_kinds


def test_of_many_cells_six_thousand_are_drawn():
    assert len(find_kinds(cells_in_space(7_000, 0), 0)[1]) == 6_000


def test_squared_distances_are_exact_far_from_the_origin():
    at = torch.full((1, 3), 1e8, dtype=torch.float64)
    assert float(squared_to_each(at, at + 1)) == pytest.approx(3)


def correlated_cells(n: int, dim: int, n_kinds: int, seed: int) -> torch.Tensor:
    """Correlated cells of some kinds."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    centres = 2 * torch.randn(n_kinds, dim, generator=generator, dtype=torch.float64)
    kind = torch.randint(n_kinds, (n,), generator=generator)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64) @ mixing + centres[kind] + 3


@settings(deadline=None, max_examples=20)
@given(dim=st.integers(1, 12), n_kinds=st.integers(1, 5), n=st.integers(100, 400), seed=st.integers(0, 99))
def test_it_is_scikit_learns(dim, n_kinds, n, seed):
    given = correlated_cells(n, dim, n_kinds, seed)
    theirs = GaussianMixture(n_kinds, covariance_type="tied", reg_covar=1e-3, random_state=seed, max_iter=200)
    theirs.fit(given.numpy())
    ours = TiedMixture.fit(given, n_kinds, 200, seed)
    for found, wanted in (
        (ours.means, theirs.means_),
        (ours.weights, theirs.weights_),
        (ours.covariance, theirs.covariances_),
        (ours.responsibilities(given), theirs.predict_proba(given.numpy())),
    ):
        torch.testing.assert_close(found, torch.from_numpy(wanted), rtol=1e-5, atol=1e-6)


def test_one_kind_is_mean_and_covariance():
    given = correlated_cells(200, 3, 2, 0)
    found = TiedMixture.fit(given, 1, 10, 0)
    torch.testing.assert_close(found.means[0], given.mean(dim=0))
    torch.testing.assert_close(found.covariance, torch.cov(given.T, correction=0) + 1e-3 * torch.eye(3))


@pytest.mark.parametrize(("n", "n_kinds"), [(2, 1), (39, 1), (40, 2), (400, 4)])
def test_a_kind_takes_twenty_cells(n, n_kinds):
    assert len(TiedMixture.fit(correlated_cells(n, 2, 1, 0), 4, 30, 0).means) == n_kinds


def test_identical_cells_are_of_one_place():
    found = TiedMixture.fit(torch.ones(100, 3, dtype=torch.float64), 4, 30, 0)
    assert torch.isfinite(found.responsibilities(torch.ones(5, 3, dtype=torch.float64))).all()
