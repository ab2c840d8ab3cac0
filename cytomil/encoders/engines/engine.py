"""What every engine gives, so that no other room knows which one runs."""

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
