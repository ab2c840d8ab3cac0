"""Cells in numbers: how large, of what shape, how dark and how coarse nucleus and cytoplasm are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

DESCRIPTION = "one cell alone, 64 px, by OpenCV"
"""Names what `describe` does; any change of it must change the name, so that what others made is never taken for its own."""
SIDE = 64
"""Pixels a side that cells are described at."""
N_DESCRIPTORS = 17 + 4 * 23
"""Length of a cell's description: its shape, and the stain of four regions."""
_AT_ONCE = 64  # cells: more take more memory and are no faster


def describe(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Cells, uint8 (N, `SIDE`, `SIDE`, 3), each in the middle of its picture → float32 (N, `N_DESCRIPTORS`), finite.

    The cell is looked at alone (`isolate`). Sizes and grain as logarithms, colours as optical densities over the
    background's, so that all vary by tenths to ones. Turning or mirroring a cell changes nothing but rounding.
    """
    from cytomil.morphology.measure import measure

    described = np.empty((len(pixels), N_DESCRIPTORS), np.float32)
    for start in range(0, len(pixels), _AT_ONCE):
        described[start : start + _AT_ONCE] = measure(pixels[start : start + _AT_ONCE])
    return described
