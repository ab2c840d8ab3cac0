"""One-class: Mahalanobis distance to the negative slides' cells, their covariance shrunk (Ledoit and Wolf, 2004)."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor

from cytomil.mil.aggregators.one_class import OneClassScorer
from cytomil.settings import FitMilSettings, InstanceScore


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
    def learn(cls, cells: Tensor, settings: FitMilSettings, seed: int) -> Self:
        """See `OneClassScorer`."""
        from sklearn.covariance import LedoitWolf

        fitted = LedoitWolf().fit(cells.double().numpy())
        model = cls(cells.shape[1], settings.top_share)
        model.mean.copy_(torch.from_numpy(fitted.location_))
        model.precision.copy_(torch.from_numpy(fitted.precision_))
        return model

    def distances(self, instances: Tensor) -> Tensor:
        """See `OneClassScorer`."""
        centred = instances.double() - self.mean
        return ((centred @ self.precision) * centred).sum(dim=1).clamp(min=0).sqrt().float()
