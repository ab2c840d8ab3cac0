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
from cytomil.mil.aggregators.matched_contrast import MatchedContrast
from cytomil.mil.aggregators.normal_density import NormalDensity
from cytomil.mil.aggregators.pacing import Learnt, learn_paced
from cytomil.mil.aggregators.two_sided import TwoSidedScorer
from cytomil.mil.aggregators.view import View, learn_views
from cytomil.mil.aggregators.witness_mixture import WitnessMixture
from cytomil.mil.bags import TrainingBag
from cytomil.mil.config import FitMilConfig, InstanceScore
from cytomil.mil.folds import spread_folds

_JOINT = (64, 128)
_MATCHED = 256
_FOLDS = 5
_OF_GROUP = 64
_MOST_CELLS = 10_000
_SINGLE = 4.0  # spreads above normal: what one opinion says beyond counts as its logarithm does
_UPPER = 0.84  # about one standard deviation above the middle, were it a normal distribution
_LEAST_SPREAD = 1e-6
_POOLED = (1 / 3, 1.0, 3.0)


class SelfPaced(TwoSidedScorer):
    """Four families of opinions on a cell, each counting a quarter, on features relative to the cell's bag (`View`).

    - *What suspects have in common*: a linear discriminant of suspects against negative bags' cells (`Discriminant`), in 64
      and in 128 components of all features.
    - *What kinds they are of*: the log ratio of two mixtures (`WitnessMixture`), in the same components. Both learn
      self-paced (`learn_paced`), on the plan of Kumar et al. (NeurIPS 2010) and ItS2CLR (arXiv 2210.09452).
    - *How unlikely the cell is* among the negative bags' (`NormalDensity`), in 64 components of each group of columns. It
      needs no witness to learn from, and carries where they are few.
    - *What suspects have that equally suspicious normal cells lack* (`MatchedContrast`), in 256 components. Its suspects are
      the choice of the three others together, each cell judged by opinions that have not seen its patient, as far as there
      are several.

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
        kinds = {kind.__name__: kind for kind in (Discriminant, WitnessMixture, NormalDensity, MatchedContrast)}
        self.opinions = nn.ModuleList(kinds[part["kind"]](**part["shape"]) for part in parts)
        self.sees = [(part["view"], part["n_components"]) for part in parts]
        self.weights = _weights(parts)
        for name, value in {"usual": torch.zeros, "spread": torch.ones}.items():
            self.register_buffer(name, value(len(parts), dtype=torch.float64))

    @classmethod
    def learn_from(cls, bags: Sequence[TrainingBag], settings: FitMilConfig, seed: int) -> Self:
        """Learn from ``bags``, which are of both labels; of each label at most 10,000 cells, evenly drawn."""
        bags = [bag for bag in bags if len(bag)]
        dim = bags[0].dim
        groups = bags[0].groups or (dim,)
        stops = torch.tensor(groups).cumsum(0).tolist()
        spans = [(0, dim, _MATCHED)]
        spans += [(stop - width, stop, _OF_GROUP) for stop, width in zip(stops, groups, strict=True)]
        kept = [_evenly(len(bag), _share_kept(bags, bag.label)) for bag in bags]
        views, seen = learn_views(bags, spans, kept, seed)
        sides = [
            [[one for one, bag in zip(view, bags, strict=True) if bag.label == label] for view in seen]
            for label in (0, 1)
        ]
        fold, _ = spread_folds(bags, _FOLDS)
        of_negative, of_positive = (
            [int(own) for own, bag in zip(fold, bags, strict=True) if bag.label == label] for label in (0, 1)
        )
        folds = of_negative, of_positive
        parts: list[dict[str, Any]] = []
        opinions: list[nn.Module] = []
        learnt: list[Learnt] = []

        def add(opinion: nn.Module, view: int, n_components: int, **shape: int) -> None:
            shape["n_components"] = n_components
            kind = type(opinion).__name__
            parts.append({"kind": kind, "view": view, "n_components": n_components, "shape": shape})
            opinions.append(opinion)

        for most in _JOINT:
            n = min(most, seen[0][0].shape[1])
            negatives, positives = ([bag[:, :n] for bag in side[0]] for side in sides)
            discriminant = learn_paced(Discriminant, negatives, positives, folds, seed)
            mixture = learn_paced(WitnessMixture, negatives, positives, folds, seed)
            learnt += [discriminant, mixture]
            add(discriminant.scorer, 0, n)
            add(mixture.scorer, 0, n, n_normal=len(mixture.scorer.get_buffer("normal")))
        for i, (negatives, positives) in enumerate(zip(*(side[1:] for side in sides), strict=True), 1):
            density = _learn_density(negatives, positives, folds, seed)
            learnt.append(density)
            add(density.scorer, i, negatives[0].shape[1], n_kinds=len(density.scorer.get_buffer("centres")))
        suspicion = _held_out_suspicion(learnt, _weights(parts))
        negatives, positives = (side[0] for side in sides)
        penalty = views[0].components.directions.square().sum(dim=0)
        contrast = MatchedContrast.learn(negatives, positives, suspicion, penalty)
        add(contrast, 0, negatives[0].shape[1])
        shapes = [
            {"start": view.start, "stop": view.stop, "n_components": view.components.directions.shape[1]}
            for view in views
        ]
        model = cls(dim, settings.top_share, parts, shapes)
        model.views, model.opinions = nn.ModuleList(views), nn.ModuleList(opinions)
        usual, spread = _scale(model._ask([torch.cat(view) for view in sides[0]]))
        model.usual.copy_(usual)
        model.spread.copy_(spread)
        return model

    def distances(self, instances: Tensor) -> Tensor:
        """See `PooledScorer`; ``instances`` are a whole bag, since its cells are seen relative to each other."""
        return self.suspicion([view.relative(view.project(instances)) for view in self._views()])

    def suspicion(self, relative: Sequence[Tensor]) -> Tensor:
        """Cells' components relative to their bag, one (n, K) for each view → float32 (n,), at least 0."""
        raw = self._ask(relative)
        return F.softplus(_mean_opinion(raw, self.usual, self.spread, self.weights)).float()

    def pool(self, distances: Tensor) -> float:
        """The mean, over three shares about ``share``, of the log of the mean of a bag's top distances, (N,) → a number."""
        ordered = distances.double().sort(descending=True).values
        tops = [ordered[: top_count(len(ordered), part * self.share)] for part in _POOLED]
        return float(torch.stack([top.mean().clamp(min=_LEAST_SPREAD).log() for top in tops]).mean())

    def read(self, kind: InstanceScore) -> ViewsReading:
        """See `Aggregator.read`."""
        return ViewsReading(self._views(), self.suspicion, self._probability)

    def _views(self) -> list[View]:
        return [view for view in self.views if isinstance(view, View)]

    def _ask(self, views: Sequence[Tensor]) -> Tensor:
        """Cells as each view has them, one (N, K) each → every opinion as it is, float64 (N, n_opinions)."""
        answers = [opinion(views[i][:, :n]) for opinion, (i, n) in zip(self.opinions, self.sees, strict=True)]
        return torch.stack(answers, dim=1)


def _weights(parts: Sequence[dict[str, Any]]) -> list[float]:
    """Each family of opinions counts alike, and in it each opinion."""
    names = [part["kind"] for part in parts]
    return [1 / names.count(name) / len(set(names)) for name in names]


def _scale(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Negatives' opinions (N, n) → the median and the upper spread of each, (n,)."""
    middle, upper = raw.quantile(torch.tensor([0.5, _UPPER], dtype=torch.float64), dim=0)
    return middle, (upper - middle).clamp(min=_LEAST_SPREAD)


def _mean_opinion(raw: Tensor, usual: Tensor, spread: Tensor, weights: Sequence[float]) -> Tensor:
    """Opinions (N, n) → their weighted mean (N,), each scaled and squeezed."""
    squeezed = _SINGLE * torch.asinh((raw - usual) / spread / _SINGLE)
    return squeezed @ torch.tensor(weights, dtype=torch.float64)


def _learn_density(
    negatives: Sequence[Tensor], positives: Sequence[Tensor], folds: tuple[list[int], list[int]], seed: int
) -> Learnt:
    """The negatives' density, and what the densities of other folds make of each bag."""
    scores: list[list[Tensor]] = [[torch.empty(0)] * len(side) for side in (negatives, positives)]
    for fold in range(max(folds[0]) + 1):
        kept = [bag for bag, own in zip(negatives, folds[0], strict=True) if own != fold] or list(negatives)
        density = NormalDensity.learn(torch.cat(kept), seed)
        held = torch.cat([density(bag) for bag, own in zip(negatives, folds[0], strict=True) if own == fold])
        middle, spread = held.mean(), held.std(correction=0).clamp(min=_LEAST_SPREAD)
        for side, of_side, found in zip((negatives, positives), folds, scores, strict=True):
            for i, own in enumerate(of_side):
                if own == fold:
                    found[i] = (density(side[i]) - middle) / spread
    return Learnt(NormalDensity.learn(torch.cat(list(negatives)), seed), *scores)


def _held_out_suspicion(opinions: Sequence[Learnt], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The negatives' and the positives' cells, (N,) and (M,), as opinions that have not seen their bag have them together."""
    usual, odd = (
        torch.stack([torch.cat(side) for side in sides], dim=1)
        for sides in ([one.negatives for one in opinions], [one.positives for one in opinions])
    )
    scale = _scale(usual)
    return _mean_opinion(usual, *scale, weights), _mean_opinion(odd, *scale, weights)


def _share_kept(bags: Sequence[TrainingBag], label: int) -> float:
    return min(1.0, _MOST_CELLS / max(1, sum(len(bag) for bag in bags if bag.label == label)))


def _evenly(n: int, share: float) -> Tensor:
    """Positions of about ``share`` of ``n`` cells, at least one."""
    return torch.linspace(0, n - 1, max(1, round(share * n))).round().long()
