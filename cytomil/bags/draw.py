"""Draws some of a bag's cells, if reading all of them would take too long or too much memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Draw:
    """At most ``max_cells`` cells per bag, drawn without replacement by ``seed`` and the bag's id. 0: all cells."""

    max_cells: int = 0
    seed: int = 0

    def count(self, n: int) -> int:
        """How many of ``n`` cells are drawn."""
        return min(n, self.max_cells) if self.max_cells else n

    def places(self, bag_id: str, n: int) -> np.ndarray:
        """Indices of the drawn cells among a bag's ``n`` cells, in ascending order, int64 (`count`,)."""
        if self.count(n) == n:
            return np.arange(n)
        rng = np.random.default_rng([self.seed, *bag_id.encode()])
        return np.sort(rng.choice(n, self.max_cells, replace=False))


ALL = Draw()
