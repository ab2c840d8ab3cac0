"""How far a slide's cells lie from all that the model has seen: the model's own limits, watched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cytomil.mil.gathered import Gathered
from cytomil.mil.shrunk_covariance import mean_and_precision, squared_distances

LIMIT_QUANTILE = 0.99
LEAST_SHARE = 0.05
TIMES_GREATEST = 2.0
_BLOCK = 4096


@dataclass(frozen=True)
class Novelty:
    """The training cells as one cloud in embedding space: ``mean`` (D,) and ``precision`` (D, D), both float64.

    A cell is *beyond* where its Mahalanobis distance from the mean is above ``limit``, the 99th percentile of the training
    cells' own: so about one training cell in a hundred is, and more on a slide of another stain, scanner or kind of cell.
    A slide is *unlike the training slides* where its share of such cells is above ``greatest_allowed``: 5 % of the cells,
    five times what is expected, or twice the greatest share on any training slide that was held out when the cloud was
    measured, whichever is more. Held out, because a slide lies closer to a cloud that it is itself a part of; twice,
    because a handful of training slides do not show how far normal ones may spread.
    """

    mean: Tensor
    precision: Tensor
    limit: float
    greatest_held_out_share: float

    @property
    def greatest_allowed(self) -> float:
        """The share of cells beyond the limit, 0 to 1, above which a slide counts as unlike the training slides."""
        return max(LEAST_SHARE, TIMES_GREATEST * self.greatest_held_out_share)

    def is_beyond(self, blocks: Iterable[np.ndarray]) -> np.ndarray:
        """Embeddings in blocks, (n, D) each → bool (N,): the cells that are farther out than 99 % of the training cells."""
        # Part by part: in double precision a slide's embeddings would take their memory several times over.
        beyond = Gathered()
        for block in blocks:
            for part in torch.from_numpy(block).split(_BLOCK):
                beyond.add(self._is_part_beyond(part))
        return beyond.all().numpy()

    def _is_part_beyond(self, part: Tensor) -> Tensor:
        return squared_distances(part, self.mean, self.precision) > self.limit**2


def fit_novelty(bags: Sequence[np.ndarray], fold: np.ndarray) -> Novelty:
    """Measure the cloud of all bags' cells, each (N, D); ``fold`` (n_bags,) says which bags are held out together."""
    greatest = 0.0
    for number in range(int(fold.max()) + 1):
        kept = _cloud([bag for bag, other in zip(bags, fold, strict=True) if other != number], 0.0)
        held = [bag for bag, other in zip(bags, fold, strict=True) if other == number]
        greatest = max(greatest, *(float(kept.is_beyond([bag]).mean()) for bag in held))
    return _cloud(bags, greatest)


def _cloud(bags: Sequence[np.ndarray], greatest_held_out_share: float) -> Novelty:
    cells = np.concatenate(bags).astype(np.float64)
    mean, precision = mean_and_precision(cells)
    squared = [squared_distances(part, mean, precision) for part in torch.from_numpy(cells).split(_BLOCK)]
    limit = float(np.quantile(torch.cat(squared).sqrt().numpy(), LIMIT_QUANTILE))
    return Novelty(mean, precision, limit, greatest_held_out_share)
