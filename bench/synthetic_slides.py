"""Synthetic whole slides of any size, for measuring memory: the same cells over and over."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt


def write_synthetic(path: Path, side: int, tile: int = 512, filled: float = 1.0) -> None:
    """A pyramidal deflated TIFF of ``side`` px at 0.25 µm/px, full of 8 µm discs, written tile by tile.

    ``filled``: share of its height, from the top, that holds discs; the rest is background.
    """
    import tifffile
    from PIL import Image, ImageDraw

    def tiles(level: int) -> Iterator[npt.NDArray[np.uint8]]:
        step = 2**level
        picture = Image.new("RGB", (tile, tile), (236, 232, 238))
        draw = ImageDraw.Draw(picture)
        # The same tile over and over: memory and time depend on how much there is to find, not on its variety.
        for x in range(32 // step, tile, max(4, 64 // step)):
            for y in range(32 // step, tile, max(4, 64 // step)):
                draw.ellipse((x - 16 / step, y - 16 / step, x + 16 / step, y + 16 / step), fill=(150, 90, 160))
        drawn, blank = np.asarray(picture), np.full((tile, tile, 3), (236, 232, 238), np.uint8)
        rows = -(-(side // step) // tile)
        for row in range(rows):
            for _ in range(rows):
                yield drawn if row < math.ceil(filled * rows) else blank

    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level in range(6):
            shape = (side // 2**level, side // 2**level, 3)
            tiff.write(
                tiles(level),
                shape=shape,
                dtype=np.uint8,
                tile=(tile, tile),
                photometric="rgb",
                compression="adobe_deflate",
                subfiletype=1 if level else 0,
                resolution=(40_000, 40_000),
                resolutionunit="CENTIMETER",
            )
