"""The reference for embed: one cell at a time, like the released code, but written from its description.

Each file is opened, decoded with Pillow, cropped, resized, and embedded by PyTorch as a batch of one, float32, channels
first.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cytomil.encoders.architecture import Encoder
from cytomil.encoders.stages import Layers
from cytomil.encoders.transform import CellTransform
from cytomil.layer import Layer


@torch.no_grad()
def embed_one_at_a_time(
    files: Iterable[Path], encoder: Encoder, transform: CellTransform, layer: Layer, orientations: int
) -> np.ndarray:
    """Cell images → embeddings, float32 (N, D), each the mean over one or two orientations."""
    rows = []
    network = Layers(encoder, [layer]).eval()
    for file in files:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        side = min(image.size) * transform.center_crop
        left, top = (image.width - side) / 2, (image.height - side) / 2
        size = (transform.image_size, transform.image_size)
        image = image.resize(size, Image.Resampling.BILINEAR, (left, top, left + side, top + side))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255
        rotated = [pixels, pixels.rot90(2, (1, 2))][:orientations]
        rows.append(np.mean([network(one[None])[0][0].numpy() for one in rotated], axis=0))
    return np.stack(rows)
