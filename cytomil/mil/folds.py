"""Which bags are held out together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cytomil.mil.bags import TrainingBag


def spread_folds(bags: Sequence[TrainingBag], most: int) -> tuple[np.ndarray, bool]:
    """The fold of each bag, (n_bags,), and whether no patient stands in two; bags of both labels lie outside of each fold.

    Every fold holds a negative bag. Where a label has one patient only, bags are held out in place of patients. Where it has
    one bag only, nothing can be held out: all bags are one fold.

    Args:
        bags: of both labels.
        most: folds at most, ≥ 1.
    """
    for group_of in (lambda bag: bag.patient, lambda bag: bag.bag_id):
        groups = [list(dict.fromkeys(group_of(bag) for bag in bags if bag.label == label)) for label in (0, 1)]
        n_folds = min(most, *map(len, groups))
        # A patient with bags of both labels keeps the fold that its negative bags gave it.
        fold_of = {group: i % n_folds for side in reversed(groups) for i, group in enumerate(side)}
        fold = np.array([fold_of[group_of(bag)] for bag in bags])
        if n_folds > 1 and all(
            len({bag.label for bag, other in zip(bags, fold, strict=True) if other != number}) == 2
            for number in range(n_folds)
        ):
            return fold, all(len(set(fold[[bag.patient == one.patient for bag in bags]])) == 1 for one in bags)
    return np.zeros(len(bags), dtype=int), False
