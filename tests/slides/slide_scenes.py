"""Synthetic slides: discs at known places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, ImageDraw

Disc = tuple[float, float, float]  # x, y, radius in µm


def render(size_um: tuple[float, float], discs: list[Disc], mpp: float) -> np.ndarray:
    """A pale field (h, w, 3) with a purple disc at each place, drawn four times finer and averaged."""
    fine = mpp / 4
    width, height = (round(side / mpp) for side in size_um)
    image = Image.new("RGB", (width * 4, height * 4), (236, 232, 238))
    draw = ImageDraw.Draw(image)
    for x, y, radius in discs:
        box = [(x - radius) / fine, (y - radius) / fine, (x + radius) / fine, (y + radius) / fine]
        draw.ellipse(box, fill=(150, 90, 160))
    return np.asarray(image.resize((width, height), Image.Resampling.BOX))


def write_pyramid(path: Path, image: np.ndarray, mpp: float | None, levels: int = 3) -> Path:
    tags = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"} if mpp else {}
    with tifffile.TiffWriter(path) as tiff:
        for level in range(levels):
            step = 2**level
            h, w = (side // step * step for side in image.shape[:2])
            part = image[:h, :w].reshape(h // step, step, w // step, step, 3).mean((1, 3)).astype(np.uint8)
            tiff.write(part, tile=(128, 128), photometric="rgb", subfiletype=1 if level else 0, **tags)
            tags = {}
    return path
