"""Negative bags' cells as a mixture of kinds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cytomil.mil.aggregators.pooled_scorer import subsample
from cytomil.mil.aggregators.tied_mixture import TiedMixture

_KINDS = 4
_MOST_CELLS = 6_000
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
    kept = subsample(cells, _MOST_CELLS, seed)
    if len(kept) == 1:  # a mixture asks for two
        kept = kept.repeat(2, 1)
    fitted = TiedMixture.fit(kept, _KINDS, _ROUNDS, seed)
    return Kinds(fitted.means, fitted.shares, fitted.covariance, kept, fitted.belongs(kept))


def squared_to_each(cells: Tensor, centres: Tensor) -> Tensor:
    """Squared distances of cells (N, K) from centres (J, K): (N, J)."""
    return torch.cdist(cells, centres, compute_mode="donot_use_mm_for_euclid_dist").square()
