"""Self-paced: what positive bags' most suspicious cells have in common, asked twice, and how far a cell is from normal."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cytomil.mil.aggregators.components import Components
from cytomil.mil.aggregators.mahalanobis import Mahalanobis
from cytomil.mil.aggregators.neighbours import distance_ratio
from cytomil.mil.aggregators.two_sided import TwoSidedScorer
from cytomil.settings import FitMilSettings, InstanceScore

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

_DIMENSIONS = 64
_SUSPECTS = 0.06
_ROUNDS = 2
_C = 0.1
_UPPER = 0.84  # about one standard deviation above the middle, were it a normal distribution
_LEAST_SPREAD = 1e-6


class SelfPaced(TwoSidedScorer):
    """A linear classifier of suspects against the cells of negative bags, beside the distance from these cells.

    The classifier sees the first 64 principal components of the embeddings (`Components`). Most cells of a positive bag
    are normal: a classifier of bag labels spends itself on them. So the first suspects are those 6 % of the positive bags'
    cells that have most company in other positive bags and least in negative ones (`distance_ratio`, by direction); logistic
    regression learns what tells them from all cells of negative bags, both sides weighing the same, and its own top 6 % are
    the suspects of the second round. Ours, on the plan of self-paced learning (Kumar et al., NeurIPS 2010) and ItS2CLR
    (arXiv 2210.09452).

    Where witnesses are too few for that, the distance from the negative bags' cells (`Mahalanobis`) still finds some. It is
    measured in the first 64 principal components of the embeddings' signed squares x·|x|: a cell that is far out in one
    thing then lies farther than one that is a little out in many.

    A cell's suspicion is softplus of the mean of the classifier's log odds and of the distance, each counted from the
    negative bags' median in units of their upper spread. Shares, rounds, C, dimensions, squares and equal weights were
    chosen on training bags; see docs/research-log.md.
    """

    meaning: ClassVar = {InstanceScore.EVIDENCE: "× as suspicious as a normal training slide's average cell"}

    weight: Tensor
    bias: Tensor
    usual: Tensor
    spread: Tensor

    def __init__(self, in_dim: int, share: float, n_components: int) -> None:
        super().__init__(in_dim, share, n_components=n_components)
        for name, shape in {"weight": (n_components,), "bias": (), "usual": (2,), "spread": (2,)}.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self.plain = Components(in_dim, n_components)
        self.squared = Components(in_dim, n_components)
        self.cloud = Mahalanobis(n_components, share)

    @classmethod
    def learn(cls, negatives: Tensor, positives: Tensor, settings: FitMilSettings) -> Self:
        """See `TwoSidedScorer`."""
        cells = torch.cat([negatives, positives])
        plain = Components.learn(cells, _DIMENSIONS)
        model = cls(cells.shape[1], settings.top_share, plain.directions.shape[1])
        model.plain, model.squared = plain, Components.learn(_signed_squares(cells), _DIMENSIONS)
        classifier = _classify_suspects(plain(negatives), plain(positives))
        model.weight.copy_(torch.from_numpy(classifier.coef_[0]))
        model.bias.fill_(float(classifier.intercept_[0]))
        model.cloud = Mahalanobis.learn(model.squared(_signed_squares(negatives)), settings, settings.seed)
        middle, upper = model._suspicions(negatives).quantile(torch.tensor([0.5, _UPPER], dtype=torch.float64), dim=0)
        model.usual.copy_(middle)
        model.spread.copy_((upper - middle).clamp(min=_LEAST_SPREAD))
        return model

    def distances(self, instances: Tensor) -> Tensor:
        """See `PooledScorer`."""
        suspicions = (self._suspicions(instances) - self.usual) / self.spread
        return F.softplus(suspicions.mean(dim=1)).float()

    def _suspicions(self, instances: Tensor) -> Tensor:
        """The classifier's log odds, and the distance from the negative bags' cells: (N, D) → (N, 2)."""
        log_odds = self.plain(instances) @ self.weight + self.bias
        distance = self.cloud.distances(self.squared(_signed_squares(instances)))
        return torch.stack([log_odds, distance.double()], dim=1)


def _signed_squares(instances: Tensor) -> Tensor:
    values = instances.double()
    return values * values.abs()


def _classify_suspects(normal: Tensor, suspicious: Tensor) -> LogisticRegression:
    from sklearn.linear_model import LogisticRegression

    unit = [F.normalize(side, dim=1) for side in (normal, suspicious)]
    scores = distance_ratio(unit[1], *unit).double().numpy()
    n_suspects = max(1, round(_SUSPECTS * len(suspicious)))
    for _ in range(_ROUNDS):
        suspects = suspicious.numpy()[np.argsort(-scores, kind="stable")[:n_suspects]]
        classifier = LogisticRegression(C=_C, class_weight="balanced", max_iter=1000)
        classifier.fit(np.concatenate([normal.numpy(), suspects]), np.repeat([0, 1], [len(normal), n_suspects]))
        scores = classifier.decision_function(suspicious.numpy())
    return classifier
