"""Cells in batches of one fixed size: compiled forms are fastest so, and a cell's embedding then knows no company."""

from __future__ import annotations

import numpy as np

_CELLS = 8  # of 224 px; measured with OpenVINO, where 1, 4, 16 and 32 were no faster
_MOST_CELLS = 64
# Of 96 px; measured with EfficientNet-Lite0, eager, on one core: 2.9 ms a cell; 3.2 by 8 and by 32, 5.6 by 128.
_CACHE_SIZED = 16


def batch_of(image_size: int) -> int:
    """How many cells of ``image_size`` px a compiled form takes at a time: about the same number of pixels for any size."""
    return int(min(_MOST_CELLS, max(_CELLS, _CELLS * (224 / image_size) ** 2)))


def cache_sized_batch(image_size: int) -> int:
    """How many cells of ``image_size`` px eager takes at a time on a processor: the maps of more would leave its caches."""
    return max(1, int(_CACHE_SIZED * (96 / image_size) ** 2))


def padded(pixels: np.ndarray, start: int, batch: int) -> np.ndarray:
    """Cells ``start`` to ``start + batch`` of uint8 (N, S, S, 3); where fewer are left, black ones follow."""
    part = pixels[start : start + batch]
    if len(part) == batch:
        return np.ascontiguousarray(part)
    filled = np.zeros((batch, *pixels.shape[1:]), pixels.dtype)
    filled[: len(part)] = part
    return filled
