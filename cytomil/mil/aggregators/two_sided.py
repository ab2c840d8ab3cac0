"""What scorers share that compare a cell with those of positive and of negative slides, without epochs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import numpy as np
import torch

from cytomil.mil.aggregators.pooled_scorer import PooledScorer, measure
from cytomil.mil.bags import TrainingBag
from cytomil.mil.config import FitMilConfig
from cytomil.mil.folds import spread_folds
from cytomil.threads import usable_cores


class TwoSidedScorer(PooledScorer):
    """A suspicion an instance, learnt from bags of both labels; the logistic curve is of bags that had no part in it."""

    @classmethod
    @abstractmethod
    def learn_from(cls, bags: Sequence[TrainingBag], settings: FitMilConfig, seed: int) -> Self:
        """Learn from ``bags``, standardised and of both labels."""

    @classmethod
    def fit(cls, bags: Sequence[TrainingBag], settings: FitMilConfig, epochs: int, seed: int) -> Iterator[Self]:
        """See `Aggregator.fit`; ``epochs`` do not matter."""
        fold, by_patient = spread_folds(bags, settings.folds)
        sets = [
            [bag for bag, other in zip(bags, fold, strict=True) if other != number] or bags
            for number in range(fold.max() + 1)
        ]
        # PyTorch lets go of the interpreter while it calculates; one thread each, so that cores make no difference.
        with ThreadPoolExecutor(
            settings.workers or usable_cores(), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            model, *scorers = pool.map(lambda some: cls.learn_from(some, settings, seed).eval(), [bags, *sets])
        pooled = np.zeros(len(bags))
        for number, scorer in enumerate(scorers):
            held = np.flatnonzero(fold == number)
            pooled[held] = measure(scorer, (bags[i].values for i in held.tolist()))
        model.calibrate(pooled, np.array([bag.label for bag in bags]), fold if by_patient else None)
        yield model
