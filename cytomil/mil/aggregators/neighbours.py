"""Scorers by the distance to the nearest cells: k nearest neighbours (one-class), and a ratio of two such distances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from cytomil.config import Config
from cytomil.mil.aggregators.base import DEFAULTS
from cytomil.mil.aggregators.scorers import OneClassScorer, TwoSidedScorer, subsample
from cytomil.mil.bags import TrainingBag
from cytomil.mil.config import FitConfig, InstanceScore

_NEIGHBOURS = 5
_NEIGHBOURS_OF_RATIO = 10
_MAX_CELLS = 10_000
_BLOCK = 2048
_MIN_DISTANCE = 1e-6
_SAME = 3e-3  # relative to a cell's own length: distances by matrix products are no more precise


class NearestNeighbours(OneClassScorer):
    """The mean Euclidean distance to the ``neighbours`` nearest cells of negative bags, of up to 10,000 drawn ones."""

    meaning: ClassVar = {
        InstanceScore.EVIDENCE: "× as far from its nearest normal cells as a normal training slide's average cell"
    }

    cells: Tensor

    def __init__(self, in_dim: int, share: float, n_cells: int, neighbours: int) -> None:
        super().__init__(in_dim, share, n_cells=n_cells, neighbours=neighbours)
        self.neighbours = neighbours
        self.register_buffer("cells", torch.zeros(n_cells, in_dim))

    @classmethod
    def learn(cls, cells: Tensor, settings: FitConfig = DEFAULTS, options: Config | None = None, seed: int = 0) -> Self:
        """See `OneClassScorer`."""
        kept = subsample(cells, _MAX_CELLS, seed)
        model = cls(cells.shape[1], settings.top_share, len(kept), min(_NEIGHBOURS, len(kept)))
        model.cells.copy_(kept)
        return model

    def distances(self, instances: Tensor) -> Tensor:
        """See `PooledScorer`."""
        return nearest_distances(instances, self.cells, self.neighbours).mean(dim=1)


class DensityRatio(TwoSidedScorer):
    """The distance to the tenth nearest cell of negative bags, divided by that to the tenth nearest of positive bags.

    It estimates the ratio of the two densities (see `distance_ratio`). Where normal cells are alike in both kinds of bag,
    that orders cells by their probability of being a witness. An odd cell is far from both sides, so oddness alone does not
    make it suspicious. Embeddings are compared by direction.
    """

    meaning: ClassVar = {
        InstanceScore.EVIDENCE: "× as much closer to diseased than to normal training slides' cells as their average cell"
    }

    negatives: Tensor
    positives: Tensor

    def __init__(self, in_dim: int, share: float, n_negatives: int, n_positives: int) -> None:
        super().__init__(in_dim, share, n_negatives=n_negatives, n_positives=n_positives)
        self.register_buffer("negatives", torch.zeros(n_negatives, in_dim))
        self.register_buffer("positives", torch.zeros(n_positives, in_dim))

    @classmethod
    def learn_from(
        cls,
        bags: Sequence[TrainingBag],
        settings: FitConfig = DEFAULTS,
        options: Config | None = None,
        seed: int = 0,
    ) -> Self:
        """See `TwoSidedScorer`; up to 10,000 drawn cells of each label are kept."""
        sides = [torch.cat([bag.values for bag in bags if bag.label == label]) for label in (0, 1)]
        negatives, positives = (subsample(side, _MAX_CELLS, seed) for side in sides)
        model = cls(negatives.shape[1], settings.top_share, len(negatives), len(positives))
        model.negatives.copy_(F.normalize(negatives, dim=1))
        model.positives.copy_(F.normalize(positives, dim=1))
        return model

    def distances(self, instances: Tensor) -> Tensor:
        """See `PooledScorer`; here the ratio, 1 if a cell is equally close to both sides."""
        return distance_ratio(F.normalize(instances, dim=1), self.negatives, self.positives)


def nearest_distances(instances: Tensor, cells: Tensor, k: int) -> Tensor:
    """Exact Euclidean distances to the ``k`` nearest of ``cells`` (M > k, D), nearest first: (N, D) → (N, k).

    An instance that is one of the cells is not its own neighbour. Otherwise training cells would look closer to others
    than new ones, and normal distances would be measured too short. If M = k, there is one fewer to choose from.
    """
    return torch.cat([_of_block(block, cells, k) for block in instances.split(_BLOCK)])


def distance_ratio(instances: Tensor, negatives: Tensor, positives: Tensor) -> Tensor:
    """The distance to the tenth nearest of ``negatives``, divided by that to the tenth nearest of ``positives``.

    Its power D estimates the ratio of the positives' density to the negatives' (k-nearest-neighbour density
    estimates; Loftsgaarden and Quesenberry, 1965). With fewer than ten cells, the farthest is taken. (N, D) → (N,).
    """
    to_negative, to_positive = (
        nearest_distances(instances, side, min(_NEIGHBOURS_OF_RATIO, len(side)))[:, -1].clamp(min=_MIN_DISTANCE)
        for side in (negatives, positives)
    )
    return to_negative / to_positive


def _of_block(block: Tensor, cells: Tensor, k: int) -> Tensor:
    nearest = torch.cdist(block, cells).topk(min(k + 1, len(cells)), largest=False).values
    is_itself = nearest[:, :1] < _SAME * block.norm(dim=1, keepdim=True).clamp(min=1)
    return torch.where(is_itself, nearest[:, -k:], nearest[:, :k])
