"""Features in few directions."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

_LEAST_VARIANCE = 1e-6
_WHOLE_UP_TO = 256


class Components(nn.Module):
    """The first principal components of some cells, whitened.

    Each is brought to variance 1 over them: what few cells differ in then weighs as much as what all differ in.
    """

    origin: Tensor
    directions: Tensor

    def __init__(self, in_dim: int, n_components: int) -> None:
        super().__init__()
        self.register_buffer("origin", torch.zeros(in_dim, dtype=torch.float64))
        self.register_buffer("directions", torch.zeros((in_dim, n_components), dtype=torch.float64))

    @classmethod
    def learn(cls, cells: Tensor, most: int) -> Self:
        """Learn at most ``most`` components of ``cells``, (N ≥ 2, D)."""
        from sklearn.decomposition import PCA

        n_components = min(most, cells.shape[1], len(cells) - 1)
        if cells.shape[1] <= _WHOLE_UP_TO or n_components > cells.shape[1] // 2:
            found = PCA(n_components, svd_solver="covariance_eigh").fit(cells.double().numpy())
        else:
            # Of many dimensions only the leading components are looked for: decomposing all of them takes minutes.
            found = PCA(n_components, svd_solver="randomized", random_state=0).fit(cells.float().numpy())
        # A direction in which nothing varies tells nothing, and is not to be blown up.
        most_varied = found.explained_variance_[0] or 1.0  # of cells that are all the same, nothing is
        lengths = np.sqrt(np.maximum(found.explained_variance_, _LEAST_VARIANCE * most_varied))
        model = cls(cells.shape[1], n_components)
        model.origin.copy_(torch.from_numpy(found.mean_))
        model.directions.copy_(torch.from_numpy(found.components_.T / lengths))
        return model

    def forward(self, instances: Tensor) -> Tensor:
        """(N, D) → float64 (N, n_components)."""
        # In single precision, which is what features come in: twice as fast, and the directions are of unit spread.
        return ((instances - self.origin.float()) @ self.directions.float()).double()
