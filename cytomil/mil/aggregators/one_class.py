"""What one-class scorers share: they learn what cells of negative slides look like, and call a bag by its farthest cells."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from cytomil.mil.aggregators.pooled_scorer import PooledScorer, measure
from cytomil.mil.bags import TrainingBag
from cytomil.mil.config import FitMilConfig


class OneClassScorer(PooledScorer):
    """A distance from the negative training slides' cells; positive bags have a part in the logistic curve alone."""

    @classmethod
    @abstractmethod
    def learn(cls, cells: Tensor, settings: FitMilConfig, seed: int) -> Self:
        """Learn what the negative slides' cells, (N ≥ 2, D) standardised, look like."""

    @classmethod
    def fit(cls, bags: Sequence[TrainingBag], settings: FitMilConfig, epochs: int, seed: int) -> Iterator[Self]:
        """See `Aggregator.fit`; ``epochs`` do not matter."""
        negatives = [bag for bag in bags if bag.label == 0]
        model = cls.learn(torch.cat([bag.values for bag in negatives]), settings, seed).eval()
        model.calibrate(*cls._cross_fitted(bags, negatives, settings, seed))
        yield model

    @classmethod
    def _cross_fitted(
        cls, bags: Sequence[TrainingBag], negatives: Sequence[TrainingBag], settings: FitMilConfig, seed: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Pooled distance, label and fold of each bag, measured by scorers that did not see its patient's negative cells.

        Bags of patients without a negative bag are spread over the same scorers: one that has seen fewer cells than another
        measures somewhat longer distances, for both labels alike.
        """
        patients = sorted({bag.patient for bag in negatives})
        if len(patients) == 1:
            return cls._halved(bags, negatives, settings, seed)
        n_folds = min(settings.folds, len(patients))
        fold_of = {patient: i % n_folds for i, patient in enumerate(patients)}
        others = sorted({bag.patient for bag in bags} - set(patients))
        fold_of |= {patient: i % n_folds for i, patient in enumerate(others)}
        fold = np.array([fold_of[bag.patient] for bag in bags])
        pooled = np.zeros(len(bags))
        for number in range(n_folds):
            cells = torch.cat([bag.values for bag in negatives if fold_of[bag.patient] != number])
            held = np.flatnonzero(fold == number)
            pooled[held] = measure(cls.learn(cells, settings, seed), (bags[i].values for i in held.tolist()))
        labels = np.array([bag.label for bag in bags])
        # A scale can be fitted without a fold only where both labels lie outside of it.
        apart = all(len(set(labels[fold != number])) == 2 for number in range(n_folds))
        return pooled, labels, fold if apart else None

    @classmethod
    def _halved(
        cls, bags: Sequence[TrainingBag], negatives: Sequence[TrainingBag], settings: FitMilConfig, seed: int
    ) -> tuple[np.ndarray, np.ndarray, None]:
        """The same where all negative bags are one patient's: every other cell of theirs is held out instead."""
        cells = torch.cat([bag.values for bag in negatives])
        scorer = cls.learn(cells[::2], settings, seed)
        held = [bag.values if bag.label else bag.values[1::2] for bag in bags]
        some = [(values, bag.label) for values, bag in zip(held, bags, strict=True) if len(values)]
        labels = np.array([label for _, label in some])
        return np.array(measure(scorer, (values for values, _ in some))), labels, None
