"""Whether a cell has more company in positive bags than in negative ones: a ratio of nearest-neighbour distances."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from cytomil.mil.aggregators.neighbours import nearest_distances
from cytomil.mil.aggregators.pooled_scorer import INNER_FOLDS, PooledScorer, measure, subsample
from cytomil.mil.bags import TrainingBag
from cytomil.settings import FitMilSettings, InstanceScore

_K = 10
_MOST_CELLS = 10_000
_LEAST = 1e-6

_Folds = list[tuple[list[TrainingBag], list[TrainingBag]]]


class DensityRatio(PooledScorer):
    """The distance to the tenth nearest cell of negative bags, over that to the tenth nearest cell of positive ones.

    The ratio's power D estimates the ratio of the two densities there (k-nearest-neighbour density estimates; Loftsgaarden
    and Quesenberry, 1965), which orders cells by the probability of being a witness, where normal cells are alike in either
    kind of bag. An odd cell is far from both, and so is not suspicious by being odd. Directions of the embeddings are
    compared, of at most 10,000 drawn cells a side.
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
    def learn(cls, bags: Sequence[TrainingBag], settings: FitMilSettings, seed: int) -> Self:
        """Remember cells of ``bags``, which are of both labels."""
        sides = [torch.cat([bag.values for bag in bags if bag.label == label]) for label in (0, 1)]
        negatives, positives = (F.normalize(subsample(side, _MOST_CELLS, seed), dim=1) for side in sides)
        model = cls(negatives.shape[1], settings.top_share, len(negatives), len(positives))
        model.negatives.copy_(negatives)
        model.positives.copy_(positives)
        return model

    @classmethod
    def fit(cls, bags: Sequence[TrainingBag], settings: FitMilSettings, epochs: int, seed: int) -> Iterator[Self]:
        """See `Aggregator.fit`; ``epochs`` do not matter."""
        model = cls.learn(bags, settings, seed).eval()
        held_out = (
            (cls.learn(kept, settings, seed), [(bag.values, bag.label) for bag in held]) for kept, held in _folds(bags)
        )
        model.calibrate(*measure(held_out))
        yield model

    def distances(self, instances: Tensor) -> Tensor:
        """See `PooledScorer`: here the ratio, 1 where a cell is as close to either."""
        unit = F.normalize(instances, dim=1)
        to_negative, to_positive = (
            nearest_distances(unit, side, min(_K, len(side)))[:, -1].clamp(min=_LEAST)
            for side in (self.negatives, self.positives)
        )
        return to_negative / to_positive


def _folds(bags: Sequence[TrainingBag]) -> _Folds:
    """Bags to learn from, of both labels, and bags held out; no patient on both sides, as far as there are enough.

    Where a label has one patient only, bags are held out; where it has one bag only, nothing can be, and the bags are
    measured by their own cells.
    """
    for group_of in (lambda bag: bag.patient, lambda bag: bag.bag_id):
        groups = [list(dict.fromkeys(group_of(bag) for bag in bags if bag.label == label)) for label in (0, 1)]
        n_folds = min(INNER_FOLDS, *map(len, groups))
        # A patient with bags of both labels keeps the fold that its negative bags gave it.
        fold_of = {group: i % n_folds for side in reversed(groups) for i, group in enumerate(side)}
        folds: _Folds = [
            (
                [bag for bag in bags if fold_of[group_of(bag)] != fold],
                [bag for bag in bags if fold_of[group_of(bag)] == fold],
            )
            for fold in range(n_folds)
        ]
        if all(len({bag.label for bag in kept}) == 2 for kept, _ in folds):
            return folds
    return [(list(bags), list(bags))]
