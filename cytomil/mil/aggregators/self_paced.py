"""Self-paced: what positive bags' most suspicious cells have in common, asked twice, and how far a cell is from normal."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cytomil.mil.aggregators.suspicion import Suspicion
from cytomil.mil.aggregators.two_sided import TwoSidedScorer
from cytomil.mil.bags import split
from cytomil.settings import FitMilSettings, InstanceScore

_SINGLE = 4  # spreads above normal: what one opinion says beyond counts as its logarithm does
_SQUARED = (True, False)  # the encoder's columns, the morphology's


class SelfPaced(TwoSidedScorer):
    """A linear classifier of suspects against the cells of negative bags, beside the distance from these cells.

    The classifier sees the first 64 principal components of the features (`Components`). Most cells of a positive bag
    are normal: a classifier of bag labels spends itself on them. So the first suspects are those 6 % of the positive bags'
    cells that have most company in other positive bags and least in negative ones (`distance_ratio`, by direction); logistic
    regression learns what tells them from all cells of negative bags, both sides weighing the same, and its own top 6 % are
    the suspects of the second round. Ours, on the plan of self-paced learning (Kumar et al., NeurIPS 2010) and ItS2CLR
    (arXiv 2210.09452).

    Where witnesses are too few for that, the distance from the negative bags' cells (`Mahalanobis`) still finds some. Of
    the encoder's columns it is measured in the first 64 principal components of their signed squares x·|x|: a cell that is
    far out in one thing then lies farther than one that is a little out in many.

    Both are asked of the encoder's columns, and again, of their own suspects, of the columns that describe a cell's
    morphology, where there are any (there without squares): what is odd to one may be hidden from the other.

    A cell's suspicion is softplus of the mean of all these opinions (`Suspicion`), each squeezed as 4·asinh(x/4): a
    distance may be any number of spreads, and one opinion alone shall not outshout three that see nothing.
    """

    meaning: ClassVar = {InstanceScore.EVIDENCE: "× as suspicious as a normal training slide's average cell"}

    def __init__(self, in_dim: int, share: float, n_components: list[int], n_described: int = 0) -> None:
        super().__init__(in_dim, share, n_components=n_components, n_described=n_described)
        self.n_described = n_described
        dims = (in_dim - n_described, n_described)
        parts = zip(dims, n_components, _SQUARED, strict=False)
        self.parts = nn.ModuleList(Suspicion(*part) for part in parts)

    @classmethod
    def learn(cls, negatives: Tensor, positives: Tensor, settings: FitMilSettings, n_described: int = 0) -> Self:
        """See `TwoSidedScorer`."""
        sides = zip(split(negatives, n_described), split(positives, n_described), _SQUARED, strict=True)
        parts = [Suspicion.learn(*side, settings) for side in sides if side[0].shape[1]]
        n_components = [len(part.weight) for part in parts]
        model = cls(negatives.shape[1], settings.top_share, n_components, n_described)
        model.parts = nn.ModuleList(parts)
        return model

    def distances(self, instances: Tensor) -> Tensor:
        """See `PooledScorer`."""
        columns = split(instances, self.n_described)
        opinions = [part(values) for part, values in zip(self.parts, columns, strict=False)]
        squeezed = _SINGLE * torch.asinh(torch.cat(opinions, dim=1) / _SINGLE)
        return F.softplus(squeezed.mean(dim=1)).float()
