"""Reading a bag whose cells are judged relative to each other, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from tempfile import SpooledTemporaryFile
from typing import IO, cast

import numpy as np
import torch
from torch import Tensor

from cytomil.mil.aggregators.view import View

_LEAST = 1e-6
_BLOCK = 8192
IN_MEMORY = 20_000
"""Cells whose components are held in memory; those of a larger bag lie in a temporary file until it is whole."""


class ViewsReading:
    """A `Reading` that keeps a bag's components until it is whole, and so until its medians are known.

    The medians of a bag of more than 20,000 cells are those of 10,000 to 20,000 of them, evenly spread.

    Args:
        views: what is kept of each block.
        suspicion: the components of some cells relative to their bag, one (n, K) for each view → distances (n,).
        probability: the bag's distances (N,) → its probability.
    """

    def __init__(
        self,
        views: Sequence[View],
        suspicion: Callable[[Sequence[Tensor]], Tensor],
        probability: Callable[[Tensor], float],
    ) -> None:
        self._views, self._suspicion, self._probability = list(views), suspicion, probability
        self._widths = [len(view.centre) for view in self._views]
        self._row_bytes = 4 * sum(self._widths)
        # Closed with this reading, which lives as long as one bag is read.
        self._spool = cast(IO[bytes], SpooledTemporaryFile(max_size=IN_MEMORY * self._row_bytes))  # noqa: SIM115
        self._count = 0

    def add(self, instances: Tensor) -> None:
        """See `Reading`."""
        joined = torch.cat([view.project(instances).float() for view in self._views], dim=1)
        self._spool.write(joined.numpy().tobytes())
        self._count += len(joined)

    def result(self) -> tuple[float, Tensor]:
        """See `Reading`."""
        step = -(-self._count // IN_MEMORY)
        drawn = torch.cat([block[-start % step :: step] for start, block in self._blocks()])
        medians = [part.median(dim=0).values.double() for part in drawn.split(self._widths, dim=1)]
        distances = torch.cat([self._of_block(block, medians) for _, block in self._blocks()])
        self._spool.close()
        return self._probability(distances), distances

    def _of_block(self, block: Tensor, medians: Sequence[Tensor]) -> Tensor:
        relative = [
            view.relative_to(part.double(), median, self._count)
            for view, part, median in zip(self._views, block.split(self._widths, dim=1), medians, strict=True)
        ]
        return self._suspicion(relative).clamp(min=_LEAST)

    def _blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Each block's place in the bag and its components, float32 (n, sum of K)."""
        self._spool.seek(0)
        for start in range(0, self._count, _BLOCK):
            read = bytearray(self._spool.read(_BLOCK * self._row_bytes))
            yield start, torch.from_numpy(np.frombuffer(read, np.float32).reshape(-1, sum(self._widths)))
