"""Supervised contrastive learning (arXiv 2004.11362) with the slides' labels as classes."""

from __future__ import annotations

import torch
from torch import Tensor

from cytomil.encoders.architecture import Encoder
from cytomil.training.losses import supcon_loss
from cytomil.training.methods.base import Batch, Method


class SupCon(Method):
    """L_out over both views of the batch. Cells of slides with the same label are each other's positives."""

    classes = True

    def losses(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """SupCon of all projections, with the slide's label as the class."""
        _, z = encoder(torch.cat(batch.views))
        return {"supcon": supcon_loss(z, batch.is_positive.repeat(2), self.settings.temperature)}
