"""Self-paced: what positive bags' most suspicious cells have in common, asked twice."""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cytomil.mil.aggregators.neighbours import distance_ratio
from cytomil.mil.aggregators.two_sided import TwoSidedScorer
from cytomil.settings import FitMilSettings, InstanceScore

_SUSPECTS = 0.06
_ROUNDS = 2
_C = 0.1


class SelfPaced(TwoSidedScorer):
    """A linear classifier of suspects against the cells of negative bags, which names the next round's suspects itself.

    Most cells of a positive bag are normal: a classifier of bag labels spends itself on them. So the first suspects are
    those 6 % of the positive bags' cells that have most company in other positive bags and least in negative ones
    (`distance_ratio`, by direction); logistic regression learns what tells them from all cells of negative bags, both sides
    weighing the same, and its own top 6 % are the suspects of the second round. Ours, on the plan of self-paced learning
    (Kumar et al., NeurIPS 2010) and ItS2CLR (arXiv 2210.09452). Shares, rounds and C were chosen on training bags; see
    docs/research-log.md.

    An instance's suspicion is -ln P(normal) by that classifier. Being linear, it also suspects an odd cell that happens to
    lie far out on the suspects' side.
    """

    meaning: ClassVar = {InstanceScore.EVIDENCE: "× as suspicious as a normal training slide's average cell"}

    weight: Tensor
    bias: Tensor

    def __init__(self, in_dim: int, share: float) -> None:
        super().__init__(in_dim, share)
        self.register_buffer("weight", torch.zeros(in_dim, dtype=torch.float64))
        self.register_buffer("bias", torch.zeros((), dtype=torch.float64))

    @classmethod
    def learn(cls, negatives: Tensor, positives: Tensor, settings: FitMilSettings) -> Self:
        """See `TwoSidedScorer`."""
        from sklearn.linear_model import LogisticRegression

        unit = [F.normalize(side, dim=1) for side in (negatives, positives)]
        scores = distance_ratio(unit[1], *unit).double().numpy()
        normal, suspicious = negatives.double().numpy(), positives.double().numpy()
        n_suspects = max(1, round(_SUSPECTS * len(positives)))
        for _ in range(_ROUNDS):
            suspects = suspicious[np.argsort(-scores, kind="stable")[:n_suspects]]
            classifier = LogisticRegression(C=_C, class_weight="balanced", max_iter=1000)
            classifier.fit(np.concatenate([normal, suspects]), np.repeat([0, 1], [len(normal), n_suspects]))
            scores = classifier.decision_function(suspicious)
        model = cls(negatives.shape[1], settings.top_share)
        model.weight.copy_(torch.from_numpy(classifier.coef_[0]))
        model.bias.fill_(float(classifier.intercept_[0]))
        return model

    def distances(self, instances: Tensor) -> Tensor:
        """See `PooledScorer`."""
        return F.softplus(instances.double() @ self.weight + self.bias).float()
