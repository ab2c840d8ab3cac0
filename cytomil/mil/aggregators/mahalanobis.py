"""One-class: Mahalanobis distance to the negative slides' cells, their covariance shrunk (Ledoit and Wolf, 2004)."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor

from cytomil.mil.aggregators.one_class import OneClassScorer
from cytomil.mil.config import FitMilConfig, InstanceScore
from cytomil.mil.shrunk_covariance import mean_and_precision, squared_distances


class Mahalanobis(OneClassScorer):
    """√((x-μ)ᵀ Σ⁻¹ (x-μ)): how many of their own spreads a cell lies from the centre of the negative slides' cells."""

    meaning: ClassVar = {
        InstanceScore.EVIDENCE: "× the distance of a normal training slide's average cell from their centre"
    }

    mean: Tensor
    precision: Tensor

    def __init__(self, in_dim: int, share: float) -> None:
        super().__init__(in_dim, share)
        self.register_buffer("mean", torch.zeros(in_dim, dtype=torch.float64))
        self.register_buffer("precision", torch.eye(in_dim, dtype=torch.float64))

    @classmethod
    def learn(cls, cells: Tensor, settings: FitMilConfig, seed: int) -> Self:
        """See `OneClassScorer`."""
        model = cls(cells.shape[1], settings.top_share)
        mean, precision = mean_and_precision(cells.double().numpy())
        model.mean.copy_(mean)
        model.precision.copy_(precision)
        return model

    def distances(self, instances: Tensor) -> Tensor:
        """See `OneClassScorer`."""
        return squared_distances(instances, self.mean, self.precision).sqrt().float()
