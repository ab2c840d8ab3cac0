"""Two opinions on how suspicious a cell is: what positive bags' suspects have in common, and how far it is from normal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cytomil.mil.aggregators.components import Components
from cytomil.mil.aggregators.mahalanobis import Mahalanobis
from cytomil.mil.aggregators.neighbours import distance_ratio
from cytomil.settings import FitMilSettings

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

_DIMENSIONS = 64
_SUSPECTS = 0.06
_ROUNDS = 2
_C = 0.1
_UPPER = 0.84  # about one standard deviation above the middle, were it a normal distribution
_LEAST_SPREAD = 1e-6


class Suspicion(nn.Module):
    """A linear classifier of suspects against the cells of negative bags, beside the distance from these cells.

    Each opinion is counted from the negative bags' median in units of their upper spread. Shares, rounds, C and dimensions
    were chosen on training bags; see docs/research-log.md.

    Args:
        in_dim: number of features D.
        n_components: of the features' and of the distance's principal components, 64 or as many as there are.
        squared: whether the distance is measured in signed squares x·|x|.
    """

    weight: Tensor
    bias: Tensor
    usual: Tensor
    spread: Tensor

    def __init__(self, in_dim: int, n_components: int, squared: bool) -> None:
        super().__init__()
        self.squared = squared
        for name, shape in {"weight": (n_components,), "bias": (), "usual": (2,), "spread": (2,)}.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self.plain = Components(in_dim, n_components)
        self.bent = Components(in_dim, n_components)
        self.cloud = Mahalanobis(n_components, 1.0)

    @classmethod
    def learn(cls, negatives: Tensor, positives: Tensor, squared: bool, settings: FitMilSettings) -> Self:
        """Learn from the cells of bags of either label, (N ≥ 1, D) standardised."""
        cells = torch.cat([negatives, positives])
        plain = Components.learn(cells, _DIMENSIONS, whiten=True)
        model = cls(cells.shape[1], plain.directions.shape[1], squared)
        # Not whitened: the covariance's shrinking then spares what varies much, and holds back what hardly does.
        model.plain, model.bent = plain, Components.learn(model._bend(cells), _DIMENSIONS, whiten=False)
        classifier = _classify_suspects(plain(negatives), plain(positives))
        model.weight.copy_(torch.from_numpy(classifier.coef_[0]))
        model.bias.fill_(float(classifier.intercept_[0]))
        model.cloud = Mahalanobis.learn(model.bent(model._bend(negatives)), settings, settings.seed)
        middle, upper = model._opinions(negatives).quantile(torch.tensor([0.5, _UPPER], dtype=torch.float64), dim=0)
        model.usual.copy_(middle)
        model.spread.copy_((upper - middle).clamp(min=_LEAST_SPREAD))
        return model

    def forward(self, instances: Tensor) -> Tensor:
        """Both opinions: (N, D) → float64 (N, 2), around 0 for a normal cell, above it the more suspicious it is."""
        return (self._opinions(instances) - self.usual) / self.spread

    def _opinions(self, instances: Tensor) -> Tensor:
        log_odds = self.plain(instances) @ self.weight + self.bias
        distance = self.cloud.distances(self.bent(self._bend(instances)))
        return torch.stack([log_odds, distance.double()], dim=1)

    def _bend(self, instances: Tensor) -> Tensor:
        values = instances.double()
        return values * values.abs() if self.squared else values


def _classify_suspects(normal: Tensor, suspicious: Tensor) -> LogisticRegression:
    """Regression of suspects, the top 6 % of positive bags' cells by what is known of them, on the negative bags' cells."""
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
