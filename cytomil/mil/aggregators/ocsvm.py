"""One-class: the support vector machine of Schölkopf et al., 2001, with a Gaussian kernel, by scikit-learn."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor

from cytomil.mil.aggregators.one_class import OneClassScorer
from cytomil.mil.aggregators.pooled_scorer import subsample
from cytomil.mil.config import FitMilConfig, InstanceScore

_MOST_CELLS = 2_000
_NU = 0.1
_BLOCK = 2048


class OneClassSVM(OneClassScorer):
    """How far the kernel's sum Σ αᵢ exp(-γ‖x-xᵢ‖²) has fallen below its greatest value on a training cell, as a logarithm.

    The machine's decision function is this sum less a constant, so both order cells alike; but far out the sum itself is
    nought to the last digit, and its logarithm still tells far from farther. It is fitted to at most 2,000 drawn cells,
    because its time grows with their square.
    """

    meaning: ClassVar = {
        InstanceScore.EVIDENCE: "× as far outside the normal cells as a normal training slide's average cell"
    }

    vectors: Tensor
    log_weights: Tensor
    greatest: Tensor

    def __init__(self, in_dim: int, share: float, n_vectors: int, gamma: float) -> None:
        super().__init__(in_dim, share, n_vectors=n_vectors, gamma=gamma)
        self.gamma = gamma
        self.register_buffer("vectors", torch.zeros(n_vectors, in_dim))
        self.register_buffer("log_weights", torch.zeros(n_vectors))
        self.register_buffer("greatest", torch.zeros(()))

    @classmethod
    def learn(cls, cells: Tensor, settings: FitMilConfig, seed: int) -> Self:
        """See `OneClassScorer`."""
        from sklearn import svm

        kept = subsample(cells, _MOST_CELLS, seed)
        gamma = 1 / (kept.shape[1] * max(float(kept.var(correction=0)), 1e-6))
        fitted = svm.OneClassSVM(nu=_NU, gamma=gamma).fit(kept.numpy())
        model = cls(cells.shape[1], settings.top_share, len(fitted.support_), gamma)
        model.vectors.copy_(kept[torch.from_numpy(fitted.support_).long()])
        model.log_weights.copy_(torch.from_numpy(fitted.dual_coef_[0]).clamp(min=1e-30).log())
        model.greatest.copy_(model.log_kernel_sum(kept).max())
        return model

    def log_kernel_sum(self, instances: Tensor) -> Tensor:
        """Instances (N, D) → log Σ αᵢ exp(-γ‖x-xᵢ‖²), (N,)."""
        return torch.cat(
            [
                (self.log_weights - self.gamma * torch.cdist(block, self.vectors).square()).logsumexp(dim=1)
                for block in instances.split(_BLOCK)
            ]
        )

    def distances(self, instances: Tensor) -> Tensor:
        """See `OneClassScorer`."""
        return (self.greatest - self.log_kernel_sum(instances)).clamp(min=0)
