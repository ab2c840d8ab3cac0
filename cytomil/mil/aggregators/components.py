"""Features in few directions."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

_LEAST_VARIANCE = 1e-6
_FEW = 4


class Components(nn.Module):
    """The first principal components of some cells.

    Whitened, each is brought to variance 1 over them: what few cells differ in then weighs as much as what all differ in.
    """

    origin: Tensor
    directions: Tensor

    def __init__(self, in_dim: int, n_components: int) -> None:
        super().__init__()
        self.register_buffer("origin", torch.zeros(in_dim, dtype=torch.float64))
        self.register_buffer("directions", torch.zeros((in_dim, n_components), dtype=torch.float64))

    @classmethod
    def learn(cls, cells: Tensor, most: int, whiten: bool) -> Self:
        """Learn at most ``most`` components of ``cells``, (N ≥ 2, D)."""
        from sklearn.decomposition import PCA

        n_components = min(most, cells.shape[1], len(cells) - 1)
        # Of few cells in thousands of dimensions the cells are decomposed; of more of them their covariance is, in less time.
        solver = "full" if _FEW * len(cells) < cells.shape[1] else "covariance_eigh"
        found = PCA(n_components, svd_solver=solver).fit(cells.double().numpy())
        lengths = np.ones(n_components)
        if whiten:  # a direction in which nothing varies tells nothing, and is not to be blown up
            most_varied = found.explained_variance_[0] or 1.0  # of cells that are all the same, nothing is
            lengths = np.sqrt(np.maximum(found.explained_variance_, _LEAST_VARIANCE * most_varied))
        model = cls(cells.shape[1], n_components)
        model.origin.copy_(torch.from_numpy(found.mean_))
        model.directions.copy_(torch.from_numpy(found.components_.T / lengths))
        return model

    def forward(self, instances: Tensor) -> Tensor:
        """(N, D) → float64 (N, n_components)."""
        return (instances.double() - self.origin) @ self.directions
