"""Synthetic whole slides of any size, with repeated cells, to measure memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt


def write_synthetic(path: Path, side: int, tile: int = 512, filled: float = 1.0) -> None:
    """Write a pyramidal deflated TIFF of ``side`` px at 0.25 µm/px, covered with discs of 8 µm, tile by tile.

    ``filled`` is the fraction of its height, from the top, with discs. The rest is background.
    """
    import tifffile
    from PIL import Image, ImageDraw

    def tiles(level: int) -> Iterator[npt.NDArray[np.uint8]]:
        step = 2**level
        picture = Image.new("RGB", (tile, tile), (236, 232, 238))
        draw = ImageDraw.Draw(picture)
        # All tiles are the same, because memory and time depend on the number of cells, not on their variety.
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
