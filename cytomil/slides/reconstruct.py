"""Grey-scale morphological reconstruction of small integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Levels = npt.NDArray[np.int16]

_STEPS_BETWEEN_LOOKS = 4  # comparing two images costs as much as a step


def reconstruct(seed: Levels, mask: Levels) -> Levels:
    """Grow ``seed`` (h, w) under ``mask`` (h, w), eight-connected, until nothing moves; ``seed`` ≤ ``mask`` everywhere.

    The result is that of `skimage.morphology.reconstruction` by dilation (Vincent 1993), which sorts all pixels first.
    Here every step widens the whole image by one pixel. That wins by far where nothing has far to spread, as within cells
    that lie a few levels apart: 20 to 50 steps where the sorting costs as much as some 2,000.
    """
    narrow = np.uint8 if mask.size and mask.min() >= 0 and mask.max() <= np.iinfo(np.uint8).max else mask.dtype
    limit = mask.astype(narrow)
    grown = seed.astype(narrow)
    while True:
        before = grown
        for _ in range(_STEPS_BETWEEN_LOOKS):
            grown = _widened(grown)
            np.minimum(grown, limit, out=grown)
        if np.array_equal(before, grown):
            return grown.astype(mask.dtype)


def _widened(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The largest of each pixel and its eight neighbours."""
    across = image.copy()
    np.maximum(across[:, 1:], image[:, :-1], out=across[:, 1:])
    np.maximum(across[:, :-1], image[:, 1:], out=across[:, :-1])
    both = across.copy()
    np.maximum(both[1:], across[:-1], out=both[1:])
    np.maximum(both[:-1], across[1:], out=both[:-1])
    return both
