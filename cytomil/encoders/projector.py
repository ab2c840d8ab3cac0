"""The projector: from the embedding h to the projection z in which the losses are taken."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cytomil.errors import SettingsError

_MOMENTUM = 0.1


class Standardise(nn.Module):
    """Each dimension to mean 0 and variance 1 over the rows given, without gain or shift (SimCLR's last batch norm).

    Cells look alike, so an untrained network's projections all point the same way, and their cosines, near 1, tell
    nothing apart. Seen from their mean the projections point everywhere from the first step on, and a batch cannot lie at
    one point.

    In evaluation the running statistics of training are used.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))

    def forward(self, rows: Tensor, follow: bool = True) -> Tensor:
        """Rows (N, D) → (N, D); N ≥ 2 in training, where more than one row is needed for a variance.

        Without ``follow`` the running statistics stay as they are: for rows that were given before.
        """
        if self.training and not follow:
            return F.batch_norm(rows, None, None, training=True)
        return F.batch_norm(rows, self.mean, self.variance, training=self.training, momentum=_MOMENTUM)


class AsItIs(nn.Identity):
    """Stands where a plain projector has nothing to standardise."""

    def forward(self, rows: Tensor, follow: bool = True) -> Tensor:
        """Rows (N, D), the same."""
        return rows


def make_projector(kind: str, embedding_dim: int, projection_dim: int) -> tuple[nn.Module, nn.Module]:
    """The projector, and what brings its outputs to one scale.

    ``plain`` is a linear layer, ReLU, a linear layer, as SimCLR's and SLAM-AGS's papers print it. ``standardised`` has
    batch norm after either layer, as SimCLR's code has. A ``projection_dim`` of 0 makes none.

    Raises `SettingsError` for another kind.
    """
    if not projection_dim:
        return nn.Identity(), AsItIs()
    if kind == "plain":
        first, last = nn.Linear(embedding_dim, embedding_dim), nn.Linear(embedding_dim, projection_dim)
        return nn.Sequential(first, nn.ReLU(inplace=True), last), AsItIs()
    if kind == "standardised":
        layers = (
            nn.Linear(embedding_dim, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim),
            nn.ReLU(inplace=True),
            nn.Linear(embedding_dim, projection_dim, bias=False),
        )
        return nn.Sequential(*layers), Standardise(projection_dim)
    raise SettingsError(f"there is no projector '{kind}'. Known: standardised, plain.")
