"""Self-pacing: which cells of positive bags are taken for witnesses, by scorers that have not seen their bag."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

SHARES = (0.3, 0.2, 0.12, 0.08, 0.06)
"""The suspects' share of the positive bags' cells, round by round."""
_TINY = 1e-9

Known = TypeVar("Known")


class Paced(nn.Module, ABC, Generic[Known]):
    """A scorer of suspects against negatives; ``known`` is what it has learnt of the negatives alone."""

    @classmethod
    @abstractmethod
    def study(cls, negatives: Tensor, seed: int) -> Known:
        """Learn what can be learnt of negative bags' cells, (N ≥ 1, K) float64, alone."""

    @classmethod
    @abstractmethod
    def against(cls, known: Known, suspects: Tensor) -> Paced[Known]:
        """Learn from suspects, (M ≥ 1, K) float64."""

    @abstractmethod
    def forward(self, cells: Tensor) -> Tensor:
        """Cells (N, K) → how suspicious each is, float64 (N,)."""


@dataclass(frozen=True)
class Learnt:
    """A scorer, and how suspicious each bag's cells look to scorers that have not seen the bag, float64 (n,) each.

    ``negatives`` and ``positives`` are in spreads above the mean of the negatives that were held out with them.
    Suspects, though, were chosen round by round with the help of all bags.
    """

    scorer: nn.Module
    negatives: list[Tensor]
    positives: list[Tensor]


def learn_paced(
    kind: type[Paced[Known]],
    negatives: Sequence[Tensor],
    positives: Sequence[Tensor],
    folds: tuple[Sequence[int], Sequence[int]],
    seed: int,
) -> Learnt:
    """Learn from bags of either label, (n, K) float64 each, on the plan of self-paced learning (Kumar et al., 2010).

    First every cell of a positive bag is a suspect. Each round scores every positive bag by a scorer that was fitted
    without its fold, and keeps the most suspicious of all as suspects, fewer each round (`SHARES`). Cross-fitting keeps a
    scorer from confirming what it has learnt by heart.

    Args:
        kind: the scorer.
        negatives: each negative bag's cells.
        positives: each positive bag's cells.
        folds: each negative and each positive bag's fold, from 0 on, as `spread_folds` gives them. With a single fold there
            is nobody else to ask, and the bags are judged by scorers that have seen them.
        seed: of what is random in fitting.
    """
    of_negative, of_positive = folds
    n_folds = max(of_negative) + 1
    known = kind.study(torch.cat(list(negatives)), seed)
    suspects = list(positives)
    kept = [
        [bag for bag, own in zip(negatives, of_negative, strict=True) if own != fold] or list(negatives)
        for fold in range(n_folds)
    ]
    studied = [kind.study(torch.cat(bags), seed) if n_folds > 1 else known for bags in kept]
    for share in SHARES:
        scores: list[Tensor] = [torch.empty(0)] * len(positives)
        usual: list[Tensor] = [torch.empty(0)] * len(negatives)
        for fold in range(n_folds):
            others = [i for i, own in enumerate(of_positive) if own != fold or n_folds == 1]
            found = torch.cat([suspects[i] for i in others])
            # All suspects may lie in the bags that are held out.
            scorer = kind.against(studied[fold], found if len(found) else torch.cat([positives[i] for i in others]))
            held = [i for i, own in enumerate(of_negative) if own == fold]
            asked = [scorer(negatives[i]) for i in held]
            middle, spread = torch.cat(asked).mean(), torch.cat(asked).std(correction=0).clamp(min=_TINY)
            for i, score in zip(held, asked, strict=True):
                usual[i] = (score - middle) / spread
            for i, own in enumerate(of_positive):
                if own == fold:
                    scores[i] = (scorer(positives[i]) - middle) / spread
        threshold = torch.cat(scores).quantile(1 - share)
        suspects = [bag[score >= threshold] for bag, score in zip(positives, scores, strict=True)]
    return Learnt(kind.against(known, torch.cat(suspects)), usual, scores)
