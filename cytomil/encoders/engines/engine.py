"""What an engine is: embeddings of decoded cells, in batches of one fixed size."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from cytomil.layer import Layer


class Engine(Protocol):
    """An encoder ready to run on blocks of decoded cells.

    ``name`` is for people: openvino-int8. ``key`` goes into every feature cache's key, so that two engines' embeddings
    never mix: the name, and a hash of the compiled form where there is one, because another calibration gives others.
    ``layer`` is one of the encoder's own layers, ``dim`` its length.
    """

    name: str
    key: str
    layer: Layer
    dim: int

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        """Decoded cells, uint8 (N, S, S, 3) → float32 (N, dim), in the same order. N may be 0."""
        ...


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
