"""Second look: most cells of a large slide are embedded in one orientation only, which saves a quarter of the time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from cytomil.mil.novelty import MANY_CELLS, is_sampled


class SecondLook:
    """Chooses the cells of a slide that are embedded in all orientations. It reads the slide once, block by block.

    These are the first ``all_of_first`` cells, the most suspicious ``fraction`` of each later block, and the evenly spread
    cells that novelty is measured on. The order, the call and the gallery depend on the most suspicious cells, and novelty
    on its sample. The other cells have a noisier score from one orientation. Within a block, suspicion is the score that
    the block would get as a bag of its own.

    Args:
        suspicion: embeddings in one orientation, float32 (n, D) → scores (n,), as `Ensemble.assess` gives them.
        fraction: 0 to 1.
        all_of_first: number of cells.
    """

    def __init__(
        self, suspicion: Callable[[np.ndarray], np.ndarray], fraction: float, all_of_first: int = MANY_CELLS
    ) -> None:
        self._suspicion, self._fraction, self._all_of_first = suspicion, fraction, all_of_first
        self._n = 0

    def choose(self, values: np.ndarray) -> np.ndarray:
        """The next cells, embedded in one orientation, float32 (n, D) → which of them need all orientations, bool (n,)."""
        start, n = self._n, len(values)
        self._n += n
        chosen = is_sampled(start, n) | (np.arange(start, start + n) < self._all_of_first)
        if not chosen.all():
            most_suspicious = np.argsort(-self._suspicion(values), kind="stable")
            chosen[most_suspicious[: math.ceil(self._fraction * n)]] = True
        return chosen
