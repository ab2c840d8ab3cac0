"""A score along one direction."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Direction(nn.Module):
    """``weight`` (K,) and ``middle`` (K,), where the score is 0; both float64 buffers, 0 until they are learnt."""

    weight: Tensor
    middle: Tensor

    def __init__(self, n_components: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(n_components, dtype=torch.float64))
        self.register_buffer("middle", torch.zeros(n_components, dtype=torch.float64))

    def forward(self, cells: Tensor) -> Tensor:
        """Cells (N, K) → how far each lies along the direction, float64 (N,)."""
        score: Tensor = (cells - self.middle) @ self.weight
        return score
