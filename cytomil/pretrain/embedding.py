"""The training cells as the encoder sees them now, without views."""

from __future__ import annotations

import torch
from torch import Tensor

from cytomil.encoders.architecture import Encoder
from cytomil.encoders.engines.eager import to_unit_range

_BLOCK = 256


@torch.no_grad()
def embed_cells(encoder: Encoder, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels uint8 (N, S, S, 3) → h (N, H), z (N, D), float32 on the CPU, in evaluation mode.

    The encoder is left in the mode it was in.
    """
    was_training = encoder.training
    encoder.eval()
    device = encoder.mean.device
    blocks = [encoder(to_unit_range(block, device)) for block in pixels.split(_BLOCK)]
    encoder.train(was_training)
    h, z = (torch.cat(parts).float().cpu() for parts in zip(*blocks, strict=True))
    return h, z
