"""DROC (Sohn et al., ICLR 2021, arXiv 2011.02578): one-class contrastive learning with rotations as augmentation."""

from __future__ import annotations

import torch
from torch import Tensor

from cytomil.encoders.architecture import Encoder
from cytomil.training.batches import balanced_batches
from cytomil.training.losses import chance_level, nt_xent_loss
from cytomil.training.methods.base import Batch, Method

_TURNS = 4


class DROC(Method):
    """NT-Xent of negative slides' cells in four rotations. Each rotation counts as a separate instance.

    Views therefore do not rotate the cells. A step holds a quarter of ``batch_size`` cells, and thereby as many images
    as a step of other methods.
    """

    contrast = "nt_xent"
    rotates = False

    def batches(self, generator: torch.Generator) -> list[Tensor]:
        """Negative slides' cells, each once."""
        return balanced_batches(self.sides()[:1], max(1, self.settings.batch_size // _TURNS), generator)

    def losses(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """NT-Xent over cells times rotations."""
        turned = [view.rot90(turn, (2, 3)) for view in batch.views for turn in range(_TURNS)]
        _, z = encoder(torch.cat(turned).contiguous(memory_format=torch.channels_last))
        z_i, z_j = z.chunk(2)
        return {"nt_xent": nt_xent_loss(z_i, z_j, self.settings.temperature)}

    def chance(self, batch: Batch) -> float:
        """ln(8B − 1)."""
        return chance_level(_TURNS * len(batch.is_positive))
