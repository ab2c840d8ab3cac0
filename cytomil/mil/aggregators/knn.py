"""One-class: distance to the nearest cells of negative slides."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor

from cytomil.mil.aggregators.neighbours import nearest_distances
from cytomil.mil.aggregators.one_class import OneClassScorer
from cytomil.mil.aggregators.pooled_scorer import subsample
from cytomil.mil.config import FitMilConfig, InstanceScore

_NEIGHBOURS = 5
_MOST_CELLS = 10_000


class NearestNeighbours(OneClassScorer):
    """The mean Euclidean distance to the ``neighbours`` nearest of the negative slides' cells, at most 10,000 drawn ones."""

    meaning: ClassVar = {
        InstanceScore.EVIDENCE: "× as far from its nearest normal cells as a normal training slide's average cell"
    }

    cells: Tensor

    def __init__(self, in_dim: int, share: float, n_cells: int, neighbours: int) -> None:
        super().__init__(in_dim, share, n_cells=n_cells, neighbours=neighbours)
        self.neighbours = neighbours
        self.register_buffer("cells", torch.zeros(n_cells, in_dim))

    @classmethod
    def learn(cls, cells: Tensor, settings: FitMilConfig, seed: int) -> Self:
        """See `OneClassScorer`."""
        kept = subsample(cells, _MOST_CELLS, seed)
        model = cls(cells.shape[1], settings.top_share, len(kept), min(_NEIGHBOURS, len(kept)))
        model.cells.copy_(kept)
        return model

    def distances(self, instances: Tensor) -> Tensor:
        """See `OneClassScorer`."""
        return nearest_distances(instances, self.cells, self.neighbours).mean(dim=1)
