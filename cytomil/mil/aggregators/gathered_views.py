"""Reading a bag whose cells are judged relative to each other, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from cytomil.mil.aggregators.view import View

_LEAST = 1e-6


class ViewsReading:
    """A `Reading` that holds a bag's components until it is whole.

    Args:
        views: what is kept of each block.
        suspicion: the bag's components, one (N, K) for each view → distances (N,).
        probability: distances (N,) → the bag's probability.
    """

    def __init__(
        self,
        views: Iterable[View],
        suspicion: Callable[[Sequence[Tensor]], Tensor],
        probability: Callable[[Tensor], float],
    ) -> None:
        self._views, self._suspicion, self._probability = list(views), suspicion, probability
        self._blocks: list[list[Tensor]] = [[] for _ in self._views]

    def add(self, instances: Tensor) -> None:
        """See `Reading`."""
        for view, blocks in zip(self._views, self._blocks, strict=True):
            blocks.append(view.project(instances).float())

    def result(self) -> tuple[float, Tensor]:
        """See `Reading`."""
        projected = [torch.cat(blocks).double() for blocks in self._blocks]
        distances = self._suspicion(projected).clamp(min=_LEAST)
        return self._probability(distances), distances
