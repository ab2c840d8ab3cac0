"""Negative bags' cells as a mixture of kinds, by scikit-learn."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cytomil.mil.aggregators.pooled_scorer import subsample

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture

_KINDS = 4
_CELLS_PER_KIND = 20
_MOST_CELLS = 6_000
_RIDGE = 1e-3
_ROUNDS = 30


@dataclass(frozen=True)
class Kinds:
    """``means`` (J, K), ``shares`` (J,), and the ``covariance`` (K, K) that all of them have in common.

    ``cells`` (N, K) are those they were fitted to, ``belongs`` (N, J) the probability that a cell is of a kind.
    """

    means: Tensor
    shares: Tensor
    covariance: Tensor
    cells: Tensor
    belongs: Tensor


def find_kinds(cells: Tensor, seed: int) -> Kinds:
    """Up to four Gaussians of one covariance, fitted to at most 6,000 drawn ones of ``cells``, (N ≥ 1, K) float64."""
    from sklearn.exceptions import ConvergenceWarning

    kept = subsample(cells, _MOST_CELLS, seed)
    if len(kept) == 1:  # scikit-learn asks for two
        kept = kept.repeat(2, 1)
    with warnings.catch_warnings():
        # Kinds that are nearly settled serve as well.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = tied_mixture(kept, _KINDS, _ROUNDS, seed)
    return Kinds(
        means=torch.from_numpy(fitted.means_),
        shares=torch.from_numpy(fitted.weights_),
        covariance=torch.from_numpy(fitted.covariances_),
        cells=kept,
        belongs=torch.from_numpy(fitted.predict_proba(kept.numpy())),
    )


def tied_mixture(cells: Tensor, most_kinds: int, max_rounds: int, seed: int) -> GaussianMixture:
    """A mixture of Gaussians of one covariance, fitted to ``cells`` (N ≥ 2, K) float64; 20 cells or more for each."""
    from sklearn.mixture import GaussianMixture

    n_kinds = max(1, min(most_kinds, len(cells) // _CELLS_PER_KIND))
    mixture = GaussianMixture(n_kinds, covariance_type="tied", reg_covar=_RIDGE, random_state=seed, max_iter=max_rounds)
    return mixture.fit(cells.numpy())


def squared_to_each(cells: Tensor, centres: Tensor) -> Tensor:
    """Squared distances of cells (N, K) from centres (J, K): (N, J)."""
    return torch.cdist(cells, centres, compute_mode="donot_use_mm_for_euclid_dist").square()
