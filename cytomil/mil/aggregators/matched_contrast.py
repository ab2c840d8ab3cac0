"""What suspects have that equally suspicious cells of negative bags lack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from cytomil.mil.aggregators.direction import Direction

SHARES = (0.03, 0.06, 0.1)
_TINY = 1e-9


class MatchedContrast(Direction):
    """A ridge discriminant of suspects against negatives' cells that looked as suspicious.

    Most suspects are odd normal cells, and their mean says more of oddness than of witnesses. Negative bags have odd cells
    too. Past one threshold of suspicion both sides hold the same oddness, and the difference of their means is that of
    witnesses alone, scaled by their share. For thresholds t at the negatives' top 3, 6 and 10 %:

        w_t = (Σ + diag(penalty))⁻¹ (mean of suspects past t - mean of negatives past t),

    Σ the covariance of all negatives. The directions are averaged, each in units of its spread over the negatives. A cell on
    the other side of the negatives' mean counts 0, since it is no less abnormal for that. Suspicion must come from scorers
    that have not seen the bag: otherwise positives pass because they were learnt by heart.
    """

    @classmethod
    def learn(
        cls, negatives: Sequence[Tensor], positives: Sequence[Tensor], suspicion: Sequence[Tensor], penalty: Tensor
    ) -> Self:
        """Learn from cells and how suspicious they look.

        Args:
            negatives: each negative bag's cells, float64 (n, K).
            positives: each positive bag's cells, float64 (n, K).
            suspicion: of the negatives' and of the positives' cells together, (N,) and (M,).
            penalty: of each component, (K,), in units of its variance.
        """
        normal, others = torch.cat(list(negatives)), torch.cat(list(positives))
        usual, odd = suspicion
        model = cls(normal.shape[1])
        model.middle.copy_(normal.mean(dim=0))
        covariance = torch.cov(normal.T, correction=0).reshape(len(penalty), len(penalty))
        factor = torch.linalg.cholesky(covariance + penalty.diag())
        for share in SHARES:
            threshold = usual.quantile(1 - share)
            suspects, rivals = others[odd >= threshold], normal[usual >= threshold]
            if len(suspects):
                difference = suspects.mean(dim=0) - rivals.mean(dim=0)
                direction = torch.cholesky_solve(difference[:, None], factor)[:, 0]
                spread = ((normal - model.middle) @ direction).std(correction=0)
                model.weight += direction / spread.clamp(min=_TINY) / len(SHARES)
        return model

    def forward(self, cells: Tensor) -> Tensor:
        """Cells (N, K) → how suspicious each is, float64 (N,), at least 0."""
        return super().forward(cells).clamp(min=0)
