"""Self-paced: what suspects have in common, what kinds they are of, and how unlikely a cell is among normal ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cytomil.mil.aggregators.base import top_count
from cytomil.mil.aggregators.discriminant import Discriminant
from cytomil.mil.aggregators.gathered_views import ViewsReading
from cytomil.mil.aggregators.normal_density import NormalDensity
from cytomil.mil.aggregators.pacing import learn_paced
from cytomil.mil.aggregators.two_sided import TwoSidedScorer
from cytomil.mil.aggregators.view import View
from cytomil.mil.aggregators.witness_mixture import WitnessMixture
from cytomil.mil.bags import TrainingBag
from cytomil.settings import FitMilSettings, InstanceScore

_JOINT = (64, 128)
_OF_GROUP = 64
_MOST_CELLS = 10_000
_SINGLE = 4.0  # spreads above normal: what one opinion says beyond counts as its logarithm does
_UPPER = 0.84  # about one standard deviation above the middle, were it a normal distribution
_LEAST_SPREAD = 1e-6
_POOLED = (1 / 3, 1.0, 3.0)


class SelfPaced(TwoSidedScorer):
    """Three families of opinions on a cell, each counting a third, on features relative to the cell's bag (`View`).

    - *What suspects have in common*: a linear discriminant of suspects against negative bags' cells (`Discriminant`), in 64
      and in 128 components of all features.
    - *What kinds they are of*: the log ratio of two mixtures (`WitnessMixture`), in the same components. Both learn
      self-paced (`learn_paced`), on the plan of Kumar et al. (NeurIPS 2010) and ItS2CLR (arXiv 2210.09452).
    - *How unlikely the cell is* among the negative bags' (`NormalDensity`), in 64 components of each group of columns. It
      needs no witness to learn from, and carries where they are few.

    Each opinion is counted from the negative bags' median in units of their upper spread and squeezed as 4·asinh(x/4), so that
    one alone does not outshout the others. A cell's suspicion is softplus of their mean. A bag is called by the mean log
    of its top ``share`` of cells, of a third of it and of three times it: how many witnesses a bag has is not known.
    """

    meaning: ClassVar = {InstanceScore.EVIDENCE: "× as suspicious as a normal training slide's average cell"}

    usual: Tensor
    spread: Tensor

    def __init__(self, in_dim: int, share: float, parts: list[dict[str, Any]], views: list[dict[str, int]]) -> None:
        super().__init__(in_dim, share, parts=parts, views=views)
        self.views = nn.ModuleList(View(**view) for view in views)
        kinds = {kind.__name__: kind for kind in (Discriminant, WitnessMixture, NormalDensity)}
        self.opinions = nn.ModuleList(kinds[part["kind"]](**part["shape"]) for part in parts)
        self.sees = [(part["view"], part["n_components"]) for part in parts]
        names = [part["kind"] for part in parts]
        self.weights = [1 / names.count(name) / len(set(names)) for name in names]
        for name, value in {"usual": torch.zeros, "spread": torch.ones}.items():
            self.register_buffer(name, value(len(parts), dtype=torch.float64))

    @classmethod
    def learn_from(cls, bags: Sequence[TrainingBag], settings: FitMilSettings, seed: int) -> Self:
        """Learn from ``bags``, which are of both labels; of each label at most 10,000 cells, evenly drawn."""
        bags = [bag for bag in bags if len(bag.values)]
        cells = torch.cat([bag.values for bag in bags])
        groups = bags[0].groups or (cells.shape[1],)
        stops = torch.tensor(groups).cumsum(0).tolist()
        spans = [(0, cells.shape[1], max(_JOINT))]
        spans += [(stop - width, stop, _OF_GROUP) for stop, width in zip(stops, groups, strict=True)]
        views = [View.learn([bag.values for bag in bags], cells, *span, seed) for span in spans]
        seen = [[view.relative(view.project(bag.values)) for bag in bags] for view in views]
        kept = [_evenly(len(bag.values), _share_kept(bags, bag.label)) for bag in bags]
        sides = [
            [
                [one[keep] for one, keep, bag in zip(view, kept, bags, strict=True) if bag.label == label]
                for view in seen
            ]
            for label in (0, 1)
        ]
        parts, opinions = [], []

        def add(opinion: nn.Module, view: int, n_components: int, shape: dict[str, int]) -> None:
            parts.append({"kind": type(opinion).__name__, "view": view, "n_components": n_components, "shape": shape})
            opinions.append(opinion)

        for most in _JOINT:
            n = min(most, seen[0][0].shape[1])
            negatives, positives = ([bag[:, :n] for bag in side[0]] for side in sides)
            add(learn_paced(Discriminant, negatives, positives, seed), 0, n, {"n_components": n})
            mixture = learn_paced(WitnessMixture, negatives, positives, seed)
            shape = {"n_components": n, "n_normal": int(mixture.get_buffer("normal").shape[0])}
            add(mixture, 0, n, shape)
        for i, view in enumerate(sides[0][1:], 1):
            density = NormalDensity.learn(torch.cat(view), seed)
            n = view[0].shape[1]
            add(density, i, n, {"n_components": n, "n_kinds": len(density.centres)})
        shapes = [
            {"start": view.start, "stop": view.stop, "n_components": view.components.directions.shape[1]}
            for view in views
        ]
        model = cls(cells.shape[1], settings.top_share, parts, shapes)
        model.views, model.opinions = nn.ModuleList(views), nn.ModuleList(opinions)
        raw = model._ask([torch.cat(view) for view in sides[0]])
        middle, upper = raw.quantile(torch.tensor([0.5, _UPPER], dtype=torch.float64), dim=0)
        model.usual.copy_(middle)
        model.spread.copy_((upper - middle).clamp(min=_LEAST_SPREAD))
        return model

    def distances(self, instances: Tensor) -> Tensor:
        """See `PooledScorer`; ``instances`` are a whole bag, since its cells are seen relative to each other."""
        return self.suspicion([view.project(instances) for view in self._views()])

    def suspicion(self, projected: Sequence[Tensor]) -> Tensor:
        """A whole bag's components, one (N, K) for each view → float32 (N,), at least 0."""
        raw = self._ask([view.relative(part) for view, part in zip(self._views(), projected, strict=True)])
        squeezed = _SINGLE * torch.asinh((raw - self.usual) / self.spread / _SINGLE)
        return F.softplus(squeezed @ torch.tensor(self.weights, dtype=torch.float64)).float()

    def pool(self, distances: Tensor) -> float:
        """The mean, over three shares about ``share``, of the log of the mean of a bag's top distances, (N,) → a number."""
        ordered = distances.double().sort(descending=True).values
        tops = [ordered[: top_count(len(ordered), part * self.share)] for part in _POOLED]
        return float(torch.stack([top.mean().clamp(min=_LEAST_SPREAD).log() for top in tops]).mean())

    def read(self, kind: InstanceScore) -> ViewsReading:
        """See `Aggregator.read`: only the components of a bag are held."""
        return ViewsReading(self._views(), self.suspicion, self._probability)

    def _views(self) -> list[View]:
        return [view for view in self.views if isinstance(view, View)]

    def _ask(self, views: Sequence[Tensor]) -> Tensor:
        """Cells as each view has them, one (N, K) each → every opinion as it is, float64 (N, n_opinions)."""
        answers = [opinion(views[i][:, :n]) for opinion, (i, n) in zip(self.opinions, self.sees, strict=True)]
        return torch.stack(answers, dim=1)


def _share_kept(bags: Sequence[TrainingBag], label: int) -> float:
    return min(1.0, _MOST_CELLS / max(1, sum(len(bag.values) for bag in bags if bag.label == label)))


def _evenly(n: int, share: float) -> Tensor:
    """Positions of about ``share`` of ``n`` cells, at least one."""
    return torch.linspace(0, n - 1, max(1, round(share * n))).round().long()
