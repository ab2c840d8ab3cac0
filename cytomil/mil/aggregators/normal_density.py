"""How unlikely a cell is among the cells of negative bags."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from cytomil.mil.aggregators.discriminant import shrunk
from cytomil.mil.aggregators.kinds import find_kinds

_TOWARDS_COMMON = 0.3


class NormalDensity(nn.Module):
    """Minus the log density of a mixture of Gaussians, one for each kind of negatives' cells, less a constant.

    A kind's covariance is drawn by 0.3 towards the one that all have in common, since a rare kind has few cells, and then by
    0.1 towards a sphere (regularised discriminant analysis: Friedman, JASA 1989).
    """

    centres: Tensor
    whitenings: Tensor
    log_shares: Tensor

    def __init__(self, n_components: int, n_kinds: int) -> None:
        super().__init__()
        self.register_buffer("centres", torch.zeros((n_kinds, n_components), dtype=torch.float64))
        self.register_buffer("whitenings", torch.zeros((n_kinds, n_components, n_components), dtype=torch.float64))
        self.register_buffer("log_shares", torch.zeros(n_kinds, dtype=torch.float64))

    @classmethod
    def learn(cls, negatives: Tensor, seed: int) -> Self:
        """Learn from the negative bags' cells, (N ≥ 1, K) float64."""
        kinds = find_kinds(negatives, seed)
        model = cls(negatives.shape[1], len(kinds.means))
        model.centres.copy_(kinds.means)
        for i, (mean, share) in enumerate(zip(kinds.means, kinds.shares, strict=True)):
            belongs, centred = kinds.belongs[:, i], kinds.cells - mean
            own = (centred * belongs[:, None]).T @ centred / belongs.sum().clamp(min=1)
            whitening = torch.linalg.cholesky(
                torch.linalg.inv(shrunk((1 - _TOWARDS_COMMON) * own + _TOWARDS_COMMON * kinds.covariance))
            )
            model.whitenings[i] = whitening
            model.log_shares[i] = share.log() + whitening.diagonal().log().sum()
        return model

    def forward(self, cells: Tensor) -> Tensor:
        """Cells (N, K) → float64 (N,), the greater the less likely."""
        squared = torch.stack(
            [
                ((cells - centre) @ whitening).square().sum(dim=1)
                for centre, whitening in zip(self.centres, self.whitenings, strict=True)
            ],
            dim=1,
        )
        return -(self.log_shares - squared / 2).logsumexp(dim=1)
