"""A mixture of Gaussians that share one covariance, by expectation maximisation."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

_CELLS_PER_KIND = 20
_RIDGE = 1e-3
_SETTLED = 1e-3


@dataclass(frozen=True)
class TiedMixture:
    """``means`` (J, K), ``shares`` (J,) and the ``covariance`` (K, K) that all J Gaussians have; float64."""

    means: Tensor
    shares: Tensor
    covariance: Tensor

    @classmethod
    def fit(cls, cells: Tensor, most_kinds: int, max_rounds: int, seed: int) -> Self:
        """Fit to ``cells``, (N ≥ 2, K) float64; 20 cells or more for each Gaussian.

        It begins at k-means and ends where the mean log likelihood moves by less than 0.001, as scikit-learn's
        `GaussianMixture(covariance_type="tied")` does. With one covariance the quadratic term of a cell is the same for all
        Gaussians, so that a round costs J products of N by K where scikit-learn takes J of N by K by K.
        """
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        n_kinds = max(1, min(most_kinds, len(cells) // _CELLS_PER_KIND))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # cells that are all the same are of one place
            labels = KMeans(n_kinds, n_init=1, random_state=seed).fit(cells.numpy()).labels_
        second_moment = cells.T @ cells / len(cells)
        belongs = torch.nn.functional.one_hot(torch.from_numpy(labels).long(), n_kinds).double()
        mixture, before = cls._maximise(cells, belongs, second_moment), -math.inf
        for _ in range(max_rounds):
            belongs, likelihood = mixture._expect(cells, second_moment)
            mixture = cls._maximise(cells, belongs, second_moment)
            if abs(likelihood - before) < _SETTLED:
                break
            before = likelihood
        return mixture

    def belongs(self, cells: Tensor) -> Tensor:
        """Cells (N, K) → the probability that each is of a kind, (N, J)."""
        return self._log_ratios(cells, torch.cholesky_inverse(torch.linalg.cholesky(self.covariance))).softmax(dim=1)

    @classmethod
    def _maximise(cls, cells: Tensor, belongs: Tensor, second_moment: Tensor) -> Self:
        counts = belongs.sum(dim=0) + 10 * torch.finfo(belongs.dtype).eps
        means = belongs.T @ cells / counts[:, None]
        shares = counts / counts.sum()
        covariance = second_moment - (shares[:, None] * means).T @ means
        covariance.diagonal().add_(_RIDGE)
        return cls(means, shares, covariance)

    def _expect(self, cells: Tensor, second_moment: Tensor) -> tuple[Tensor, float]:
        """What `belongs` gives, and the cells' mean log likelihood."""
        factor = torch.linalg.cholesky(self.covariance)
        precision = torch.cholesky_inverse(factor)
        ratios = self._log_ratios(cells, precision)
        normaliser = ratios.logsumexp(dim=1, keepdim=True)
        log_determinant = 2 * factor.diagonal().log().sum()
        quadratic = (precision * second_moment).sum()
        constant = (len(factor) * math.log(2 * math.pi) + log_determinant + quadratic) / 2
        return (ratios - normaliser).exp(), float(normaliser.mean() - constant)

    def _log_ratios(self, cells: Tensor, precision: Tensor) -> Tensor:
        """The log of share times density, (N, J), less what is the same for all Gaussians of a cell."""
        slopes = precision @ self.means.T
        return cells @ slopes - (self.means.T * slopes).sum(dim=0) / 2 + self.shares.log()
