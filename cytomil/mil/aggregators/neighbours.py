"""Distances to the nearest of some cells, exact, block by block."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 2048
_K = 10
_LEAST = 1e-6
_SAME = 3e-3  # of a cell's own length: distances by matrix products are no finer


def nearest_distances(instances: Tensor, cells: Tensor, k: int) -> Tensor:
    """Euclidean distances to the ``k`` nearest of ``cells`` (M > k, D), nearest first: (N, D) → (N, k).

    An instance that is one of the cells is no neighbour of itself: else training cells would look closer to their like
    than new ones, and what counts as usual would be measured too short. With M = k there is one less to choose from.
    """
    return torch.cat([_of_block(block, cells, k) for block in instances.split(_BLOCK)])


def distance_ratio(instances: Tensor, negatives: Tensor, positives: Tensor) -> Tensor:
    """The distance to the tenth nearest of ``negatives``, over that to the tenth nearest of ``positives``: (N, D) → (N,).

    Its power D estimates the ratio of the positives' density there to the negatives' (k-nearest-neighbour density
    estimates; Loftsgaarden and Quesenberry, 1965). Of fewer than ten cells the last is taken.
    """
    to_negative, to_positive = (
        nearest_distances(instances, side, min(_K, len(side)))[:, -1].clamp(min=_LEAST)
        for side in (negatives, positives)
    )
    return to_negative / to_positive


def _of_block(block: Tensor, cells: Tensor, k: int) -> Tensor:
    nearest = torch.cdist(block, cells).topk(min(k + 1, len(cells)), largest=False).values
    is_itself = nearest[:, :1] < _SAME * block.norm(dim=1, keepdim=True).clamp(min=1)
    return torch.where(is_itself, nearest[:, -k:], nearest[:, :k])
