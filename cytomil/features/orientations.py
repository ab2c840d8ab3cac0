"""Embeddings as the mean over a cell's orientations: a cell has no up and no left, but a network has."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Embed = Callable[[np.ndarray], np.ndarray]
"""From decoded cells, uint8 (N, S, S, 3), to embeddings, float32 (N, D)."""

# So ordered that the first two and the first four are groups too: half a turn; quarter turns; with their mirror images.
_QUARTERS = (0, 2, 1, 3)


def embed_in_orientations(embed: Embed, pixels: np.ndarray, n: int) -> np.ndarray:
    """The mean embedding over ``n`` orientations of each cell, uint8 (N, S, S, 3) → float32 (N, D).

    1: as the cell lies; 2: and turned by half; 4: all quarter turns; 8: and their mirror images, after which turning or
    mirroring a cell changes nothing but rounding. Costs ``n`` times as much.
    """
    if n == 1:
        return embed(pixels)
    total = np.zeros((), np.float32)
    for i in range(n):
        mirrored = pixels[:, :, ::-1] if i >= len(_QUARTERS) else pixels
        turned = np.rot90(mirrored, _QUARTERS[i % len(_QUARTERS)], axes=(1, 2))
        total = total + embed(np.ascontiguousarray(turned))
    return total / np.float32(n)
