"""The reference for embed: one cell at a time, in the manner of the released code, written from its description.

Open the file, decode with Pillow, crop and resize, a batch of one in float32, channels first, through the eager encoder.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cytomil.encoders.architecture import Encoder
from cytomil.encoders.transform import CellTransform


@torch.no_grad()
def embed_one_at_a_time(files: Iterable[Path], encoder: Encoder, transform: CellTransform, layer: str) -> np.ndarray:
    """Cell images → embeddings, float32 (N, D)."""
    rows = []
    for file in files:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        side = min(image.size) * transform.center_crop
        left, top = (image.width - side) / 2, (image.height - side) / 2
        size = (transform.image_size, transform.image_size)
        image = image.resize(size, Image.Resampling.BILINEAR, (left, top, left + side, top + side))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255
        h, z = encoder(pixels[None])
        rows.append((h if layer == "h" else z)[0].numpy())
    return np.stack(rows)
