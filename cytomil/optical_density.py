"""How much light a stain takes away: what pixels are told apart by where cells are found and described."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def optical_density(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """-log((v + 1) / 256) of every value v, shape kept: 0 for white, 5.5 for black (Beer and Lambert's law)."""
    table: npt.NDArray[np.float32] = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)
    return table.take(pixels)
