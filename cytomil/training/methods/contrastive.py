"""SimCLR, supervised contrastive learning, and MoCo v3."""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import Tensor, nn

from cytomil.encoders.architecture import Encoder
from cytomil.training.cells import TrainingCells
from cytomil.training.config import PretrainConfig
from cytomil.training.losses import chance_level, info_nce_loss, nt_xent_loss, supcon_loss
from cytomil.training.methods.base import Batch, Method, project_views


class SimCLR(Method):
    """NT-Xent over the whole batch."""

    contrast = "nt_xent"

    def losses(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """NT-Xent of both views of all cells."""
        return {"nt_xent": nt_xent_loss(*project_views(encoder, batch.views), self.settings.temperature)}

    def chance(self, batch: Batch) -> float:
        """ln(2B − 1)."""
        return chance_level(len(batch.is_positive))


class SupCon(Method):
    """L_out over both views of the batch. Cells of slides with the same label are each other's positives."""

    classes = True

    def losses(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """SupCon of all projections, with the slide's label as the class."""
        _, z = encoder(torch.cat(batch.views))
        return {"supcon": supcon_loss(z, batch.is_positive.repeat(2), self.settings.temperature)}


_FIRST_MOMENTUM = 0.99
_HIDDEN = 512


class MoCoV3(Method):
    """Symmetric InfoNCE of each view's queries, from a predictor, against the other view's keys."""

    contrast = "info_nce"

    def __init__(self, settings: PretrainConfig, encoder: Encoder, cells: TrainingCells) -> None:
        super().__init__(settings, encoder, cells)
        dim = settings.projection_dim
        self.predictor = nn.Sequential(
            nn.Linear(dim, _HIDDEN, bias=False), nn.BatchNorm1d(_HIDDEN), nn.ReLU(inplace=True), nn.Linear(_HIDDEN, dim)
        )
        self.momentum_encoder = deepcopy(encoder).requires_grad_(False)

    def losses(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """The mean InfoNCE of both directions."""
        z_i, z_j = project_views(encoder, batch.views)
        q_i, q_j = self.predictor(torch.cat([z_i, z_j])).chunk(2)
        with torch.no_grad():
            k_i, k_j = project_views(self.momentum_encoder, batch.views)
        temperature = self.settings.temperature
        return {"info_nce": (info_nce_loss(q_i, k_j, temperature) + info_nce_loss(q_j, k_i, temperature)) / 2}

    @torch.no_grad()
    def after_step(self, encoder: Encoder, progress: float) -> None:
        """Update the momentum encoder. Its momentum rises from 0.99 to 1 by half a cosine."""
        momentum = 1 - (1 - _FIRST_MOMENTUM) * (1 + math.cos(math.pi * progress)) / 2
        for slow, fast in zip(self.momentum_encoder.parameters(), encoder.parameters(), strict=True):
            slow.lerp_(fast, 1 - momentum)

    def chance(self, batch: Batch) -> float:
        """Ln B."""
        return math.log(len(batch.is_positive))
