"""One-class: the density of the negative slides' cells as a mixture of Gaussians."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor

from cytomil.mil.aggregators.kinds import squared_to_each
from cytomil.mil.aggregators.one_class import OneClassScorer
from cytomil.mil.aggregators.pooled_scorer import subsample
from cytomil.mil.aggregators.tied_mixture import TiedMixture
from cytomil.mil.config import FitMilConfig, InstanceScore

_COMPONENTS = 8
_ROUNDS = 100
_MOST_CELLS = 20_000


class GaussianDensity(OneClassScorer):
    """How much less likely a cell is than the likeliest centre of the mixture, as a logarithm.

    Normal slides hold several kinds of cells: hence up to eight Gaussians, which share one covariance, because a rare kind has
    too few cells for a covariance of its own. It is fitted to at most 20,000 drawn cells.
    """

    meaning: ClassVar = {InstanceScore.EVIDENCE: "× as unusual (log density) as a normal training slide's average cell"}

    centres: Tensor
    whitening: Tensor
    log_weights: Tensor
    peak: Tensor

    def __init__(self, in_dim: int, share: float, n_components: int) -> None:
        super().__init__(in_dim, share, n_components=n_components)
        self.register_buffer("centres", torch.zeros(n_components, in_dim, dtype=torch.float64))
        self.register_buffer("whitening", torch.eye(in_dim, dtype=torch.float64))
        self.register_buffer("log_weights", torch.full((n_components,), -math.log(n_components), dtype=torch.float64))
        self.register_buffer("peak", torch.zeros((), dtype=torch.float64))

    @classmethod
    def learn(cls, cells: Tensor, settings: FitMilConfig, seed: int) -> Self:
        """See `OneClassScorer`."""
        fitted = TiedMixture.fit(subsample(cells, _MOST_CELLS, seed).double(), _COMPONENTS, _ROUNDS, seed)
        model = cls(cells.shape[1], settings.top_share, len(fitted.means))
        model.centres.copy_(fitted.means)
        model.whitening.copy_(torch.linalg.cholesky(torch.linalg.inv(fitted.covariance)))
        model.log_weights.copy_(fitted.shares.log())
        model.peak.copy_(model.log_density(model.centres).max())
        return model

    def log_density(self, instances: Tensor) -> Tensor:
        """Log density less that constant which all cells share: (N, D) → float64 (N,)."""
        white, centres = instances.double() @ self.whitening, self.centres @ self.whitening
        return (self.log_weights - squared_to_each(white, centres) / 2).logsumexp(dim=1)

    def distances(self, instances: Tensor) -> Tensor:
        """See `OneClassScorer`."""
        return (self.peak - self.log_density(instances)).clamp(min=0).float()
