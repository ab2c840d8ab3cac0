"""What scorers share that compare a cell with those of positive and of negative slides, without epochs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Self

from cytomil.mil.aggregators.pooled_scorer import INNER_FOLDS, PooledScorer, measure
from cytomil.mil.bags import TrainingBag
from cytomil.settings import FitMilSettings

_Folds = list[tuple[list[TrainingBag], list[TrainingBag]]]


class TwoSidedScorer(PooledScorer):
    """A suspicion an instance, learnt from bags of both labels; the logistic curve is of bags that had no part in it."""

    @classmethod
    @abstractmethod
    def learn_from(cls, bags: Sequence[TrainingBag], settings: FitMilSettings, seed: int) -> Self:
        """Learn from ``bags``, standardised and of both labels."""

    @classmethod
    def fit(cls, bags: Sequence[TrainingBag], settings: FitMilSettings, epochs: int, seed: int) -> Iterator[Self]:
        """See `Aggregator.fit`; ``epochs`` do not matter."""
        model = cls.learn_from(bags, settings, seed).eval()
        held_out = (
            (cls.learn_from(kept, settings, seed), [(bag.values, bag.label) for bag in held])
            for kept, held in _folds(bags)
        )
        model.calibrate(*measure(held_out))
        yield model


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
