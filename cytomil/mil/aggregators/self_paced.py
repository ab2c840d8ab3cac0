"""Self-paced: a combination of four families of detectors. They learn from fewer suspects in each round.

`self_paced_subspaces` holds the measures of a cell, and `self_paced_detectors` holds the detectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cytomil.config import Config
from cytomil.mil.aggregators.base import DEFAULTS, top_count
from cytomil.mil.aggregators.scorers import TwoSidedScorer
from cytomil.mil.aggregators.self_paced_detectors import (
    Background,
    Discriminant,
    MatchedContrast,
    NormalDensity,
    Paced,
    ReaderContrast,
    WitnessMixture,
)
from cytomil.mil.aggregators.self_paced_subspaces import Subspace, SubspacesReading, learn_subspaces
from cytomil.mil.bags import TrainingBag, spread_folds
from cytomil.mil.config import FitConfig, InstanceScore

SUSPECT_FRACTIONS = (0.3, 0.2, 0.12, 0.08, 0.06)
"""The fraction of the positive bags' cells that are suspects, per round."""
_JOINT_COMPONENTS = (64, 128)
_MATCHED_COMPONENTS = 256
_GROUP_COMPONENTS = 64
_MAX_FOLDS = 5
_MAX_CELLS = 10_000
_KNEE = 4.0  # in spreads above the median; a detector's higher scores grow logarithmically
_UPPER = 0.84  # quantile: one standard deviation above the median of a normal distribution
_MIN_SPREAD = 1e-6
_PACED_MIN_SPREAD = 1e-9
_MIN_CONFIRMED = 10
_POOLED = (1 / 3, 1.0, 3.0)

_DETECTORS = (Discriminant, WitnessMixture, NormalDensity, MatchedContrast, ReaderContrast)

Folds = tuple[Sequence[int], Sequence[int]]


class SelfPaced(TwoSidedScorer):
    """Four families of detectors, each with a quarter of the weight, on features relative to the cell's bag (`Subspace`).

    - *What suspects have in common*: a linear discriminant of suspects against negative bags' cells (`Discriminant`), in 64
      and in 128 components of all features.
    - *Which kind they resemble*: the log ratio of two mixtures (`WitnessMixture`), in the same components. Both learn in
      rounds (`learn_paced`), as in self-paced learning (Kumar et al., NeurIPS 2010) and ItS2CLR (arXiv 2210.09452).
    - *How unlikely the cell is* among the cells of negative bags (`NormalDensity`), in 64 components per group of columns.
      It learns without witnesses, and helps most if there are few.
    - *How suspects differ from equally suspicious normal cells* (`MatchedContrast`), in 256 components. The combined
      score of the other three chooses its suspects. With several patients, detectors that did not learn from a patient
      score its cells.

    If readers confirmed ten cells or more, there is a fifth family, `ReaderContrast`. Confirmed cells are suspects in every
    round, and rejected ones count as normal.

    Each detector's score is measured from the negative bags' median, in units of their upper spread. It is then squeezed as
    4·asinh(x/4), so that no single detector dominates. A cell's suspicion is softplus of the weighted mean. The number of
    witnesses in a bag is unknown. A bag's pooled distance is therefore a mean over three top fractions: ``share``, a third
    of it, and three times it.

    Args:
        in_dim: length of an instance's embedding.
        share: fraction of a bag's instances that are pooled, 0 to 1.
        parts: per detector, the name of its class, the index of its subspace, how many components it reads, and its shape.
        views: per subspace, the arguments that build it.
    """

    meaning: ClassVar = {InstanceScore.EVIDENCE: "× as suspicious as a normal training slide's average cell"}

    takes_feedback: ClassVar = True

    usual: Tensor
    spread: Tensor

    def __init__(self, in_dim: int, share: float, parts: list[dict[str, Any]], views: list[dict[str, int]]) -> None:
        super().__init__(in_dim, share, parts=parts, views=views)
        # Weights of saved models use the names "views" and "opinions".
        self.views = nn.ModuleList(Subspace(**view) for view in views)
        kinds = {kind.__name__: kind for kind in _DETECTORS}
        self.opinions = nn.ModuleList(kinds[part["kind"]](**part["shape"]) for part in parts)
        self.reads = [(part["view"], part["n_components"]) for part in parts]
        self.weights = _weights(parts)
        for name, value in {"usual": torch.zeros, "spread": torch.ones}.items():
            self.register_buffer(name, value(len(parts), dtype=torch.float64))

    @classmethod
    def learn_from(
        cls,
        bags: Sequence[TrainingBag],
        settings: FitConfig = DEFAULTS,
        options: Config | None = None,
        seed: int = 0,
    ) -> Self:
        """See `TwoSidedScorer`. Of each label, up to 10,000 evenly drawn cells are used."""
        bags = [bag for bag in bags if len(bag)]
        dim = bags[0].dim
        groups = bags[0].groups or (dim,)
        stops = torch.tensor(groups).cumsum(0).tolist()
        spans = [(0, dim, _MATCHED_COMPONENTS)]
        spans += [(stop - width, stop, _GROUP_COMPONENTS) for stop, width in zip(stops, groups, strict=True)]
        kept = [_kept(bag, _kept_fraction(bags, bag.label)) for bag in bags]
        subspaces, relative = learn_subspaces(bags, spans, kept, seed)
        fold, _ = spread_folds(bags, _MAX_FOLDS)
        sides, folds, confirmed = _sorted_by_label(bags, relative, kept, fold.tolist())
        parts: list[dict[str, Any]] = []
        detectors: list[nn.Module] = []
        fitted: list[CrossFitted] = []

        def add(detector: nn.Module, subspace: int, n_components: int, **shape: int) -> None:
            shape["n_components"] = n_components
            kind = type(detector).__name__
            parts.append({"kind": kind, "view": subspace, "n_components": n_components, "shape": shape})
            detectors.append(detector)

        for max_components in _JOINT_COMPONENTS:
            n = min(max_components, relative[0][0].shape[1])
            negatives, positives = ([bag[:, :n] for bag in side[0]] for side in sides)
            discriminant = learn_paced(Discriminant, negatives, positives, folds, seed, confirmed)
            mixture = learn_paced(WitnessMixture, negatives, positives, folds, seed, confirmed)
            fitted += [discriminant, mixture]
            add(discriminant.detector, 0, n)
            add(mixture.detector, 0, n, n_normal=len(mixture.detector.get_buffer("normal")))
        for i, (negatives, positives) in enumerate(zip(*(side[1:] for side in sides), strict=True), 1):
            density = _learn_density(negatives, positives, folds, seed)
            fitted.append(density)
            add(density.detector, i, negatives[0].shape[1], n_kinds=len(density.detector.get_buffer("centres")))
        suspicion = _held_out_suspicion(fitted, _weights(parts))
        negatives, positives = (side[0] for side in sides)
        penalty = subspaces[0].components.directions.square().sum(dim=0)
        contrast = MatchedContrast.learn(negatives, positives, suspicion, penalty)
        add(contrast, 0, negatives[0].shape[1])
        confirmed_cells = torch.cat([bag[mask] for bag, mask in zip(positives, confirmed, strict=True)])
        if len(confirmed_cells) >= _MIN_CONFIRMED:
            add(ReaderContrast.learn(torch.cat(negatives), confirmed_cells), 0, negatives[0].shape[1])
        shapes = [
            {"start": one.start, "stop": one.stop, "n_components": one.components.directions.shape[1]}
            for one in subspaces
        ]
        model = cls(dim, settings.top_fraction, parts, shapes)
        model.views, model.opinions = nn.ModuleList(subspaces), nn.ModuleList(detectors)
        n_negative = sum(bag.label == 0 for bag in bags)
        # Rejected cells of positive bags are not a fair sample of normal cells.
        median, spread = _scale(model._raw_scores([torch.cat(own[:n_negative]) for own in sides[0]]))
        model.usual.copy_(median)
        model.spread.copy_(spread)
        return model

    def distances(self, instances: Tensor) -> Tensor:
        """See `PooledScorer`. ``instances`` must be a whole bag, since cells are measured relative to each other."""
        return self.suspicion([one.relative(one.project(instances)) for one in self._subspaces()])

    def suspicion(self, relative: Sequence[Tensor]) -> Tensor:
        """Cells' components relative to their bag, one (n, K) per subspace → float32 (n,), at least 0."""
        raw = self._raw_scores(relative)
        return F.softplus(_combined(raw, self.usual, self.spread, self.weights)).float()

    def pool(self, distances: Tensor) -> float:
        """The mean over three top fractions of the log of the mean of a bag's top distances, (N,) → a number."""
        counts = [top_count(len(distances), part * self.share) for part in _POOLED]
        # Not sorted as a whole: a slide may have a million cells.
        ordered = distances.topk(max(counts)).values.double()
        tops = [ordered[:count] for count in counts]
        return float(torch.stack([top.mean().clamp(min=_MIN_SPREAD).log() for top in tops]).mean())

    def read(self, kind: InstanceScore) -> SubspacesReading:
        """See `Aggregator.read`."""
        return SubspacesReading(self._subspaces(), self.suspicion, self._probability)

    def _subspaces(self) -> list[Subspace]:
        return [one for one in self.views if isinstance(one, Subspace)]

    def _raw_scores(self, relative: Sequence[Tensor]) -> Tensor:
        """Cells' components, one (N, K) per subspace → each detector's score, float64 (N, n_detectors)."""
        scores = [detector(relative[i][:, :n]) for detector, (i, n) in zip(self.opinions, self.reads, strict=True)]
        return torch.stack(scores, dim=1)


@dataclass(frozen=True)
class CrossFitted:
    """A detector fitted to all bags, and each bag's scores from detectors that did not learn from it.

    Scores are in standard deviations above the mean of the negatives that were held out together. The choice of suspects,
    however, used all bags in every round.

    Args:
        detector: fitted to all bags.
        negatives: per negative bag, its cells' scores, float64 (n,).
        positives: the same per positive bag.
    """

    detector: nn.Module
    negatives: list[Tensor]
    positives: list[Tensor]


def learn_paced(
    kind: type[Paced[Background]],
    negatives: Sequence[Tensor],
    positives: Sequence[Tensor],
    folds: Folds,
    seed: int,
    confirmed: Sequence[Tensor] = (),
) -> CrossFitted:
    """Learn a detector in rounds, as in self-paced learning (Kumar et al., NeurIPS 2010).

    At first, every cell of a positive bag is a suspect. Each round scores every positive bag by a detector that was fitted
    without its fold. The most suspicious cells stay suspects, fewer each round (`SUSPECT_FRACTIONS`). Cross-fitting
    prevents a detector from confirming what it has memorised.

    Args:
        kind: class of the detector.
        negatives: each negative bag's cells, (n, K) float64.
        positives: each positive bag's cells, (n, K) float64.
        folds: the fold of each negative and each positive bag, from 0, as returned by `spread_folds`. With a single fold,
            bags are scored by detectors that learnt from them.
        seed: of random choices in fitting.
        confirmed: per positive bag, a mask of the cells that readers called abnormal, bool (n,). They are suspects in
            every round.
    """
    of_negative, of_positive = folds
    confirmed = confirmed or [torch.zeros(len(bag), dtype=torch.bool) for bag in positives]
    n_folds = max(of_negative) + 1
    background = kind.fit_background(torch.cat(list(negatives)), seed)
    suspects = list(positives)
    kept = [
        [bag for bag, own in zip(negatives, of_negative, strict=True) if own != fold] or list(negatives)
        for fold in range(n_folds)
    ]
    backgrounds = [kind.fit_background(torch.cat(bags), seed) if n_folds > 1 else background for bags in kept]
    for fraction in SUSPECT_FRACTIONS:
        scores: list[Tensor] = [torch.empty(0)] * len(positives)
        normal_scores: list[Tensor] = [torch.empty(0)] * len(negatives)
        for fold in range(n_folds):
            others = [i for i, own in enumerate(of_positive) if own != fold or n_folds == 1]
            training = torch.cat([suspects[i] for i in others])
            # The held-out bags may contain all suspects.
            detector = kind.fit_contrast(
                backgrounds[fold], training if len(training) else torch.cat([positives[i] for i in others])
            )
            held = [i for i, own in enumerate(of_negative) if own == fold]
            raw = [detector(negatives[i]) for i in held]
            mean, spread = torch.cat(raw).mean(), torch.cat(raw).std(correction=0).clamp(min=_PACED_MIN_SPREAD)
            for i, score in zip(held, raw, strict=True):
                normal_scores[i] = (score - mean) / spread
            for i, own in enumerate(of_positive):
                if own == fold:
                    scores[i] = (detector(positives[i]) - mean) / spread
        threshold = torch.cat(scores).quantile(1 - fraction)
        suspects = [
            bag[(score >= threshold) | is_confirmed]
            for bag, score, is_confirmed in zip(positives, scores, confirmed, strict=True)
        ]
    return CrossFitted(kind.fit_contrast(background, torch.cat(suspects)), normal_scores, scores)


def _learn_density(negatives: Sequence[Tensor], positives: Sequence[Tensor], folds: Folds, seed: int) -> CrossFitted:
    """The negatives' density, and each bag's scores from densities fitted without its fold."""
    scores: list[list[Tensor]] = [[torch.empty(0)] * len(side) for side in (negatives, positives)]
    for fold in range(max(folds[0]) + 1):
        kept = [bag for bag, own in zip(negatives, folds[0], strict=True) if own != fold] or list(negatives)
        density = NormalDensity.learn(torch.cat(kept), seed)
        held = torch.cat([density(bag) for bag, own in zip(negatives, folds[0], strict=True) if own == fold])
        mean, spread = held.mean(), held.std(correction=0).clamp(min=_MIN_SPREAD)
        for side, side_folds, side_scores in zip((negatives, positives), folds, scores, strict=True):
            for i, own in enumerate(side_folds):
                if own == fold:
                    side_scores[i] = (density(side[i]) - mean) / spread
    return CrossFitted(NormalDensity.learn(torch.cat(list(negatives)), seed), *scores)


def _held_out_suspicion(fitted: Sequence[CrossFitted], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The combined held-out scores of all negatives' and of all positives' cells, (N,) and (M,)."""
    of_negatives, of_positives = (
        torch.stack([torch.cat(side) for side in sides], dim=1)
        for sides in ([one.negatives for one in fitted], [one.positives for one in fitted])
    )
    scale = _scale(of_negatives)
    return _combined(of_negatives, *scale, weights), _combined(of_positives, *scale, weights)


def _weights(parts: Sequence[dict[str, Any]]) -> list[float]:
    """Weights of the detectors. Each family has the same weight, shared equally by its detectors."""
    names = [part["kind"] for part in parts]
    return [1 / names.count(name) / len(set(names)) for name in names]


def _scale(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Negatives' scores (N, n) → median and upper spread of each detector, (n,)."""
    median, upper = raw.quantile(torch.tensor([0.5, _UPPER], dtype=torch.float64), dim=0)
    return median, (upper - median).clamp(min=_MIN_SPREAD)


def _combined(raw: Tensor, median: Tensor, spread: Tensor, weights: Sequence[float]) -> Tensor:
    """Scores (N, n) → their weighted mean (N,), each scaled and squeezed."""
    squeezed = _KNEE * torch.asinh((raw - median) / spread / _KNEE)
    return squeezed @ torch.tensor(weights, dtype=torch.float64)


def _kept_fraction(bags: Sequence[TrainingBag], label: int) -> float:
    return min(1.0, _MAX_CELLS / max(1, sum(len(bag) for bag in bags if bag.label == label)))


def _kept(bag: TrainingBag, fraction: float) -> Tensor:
    """Indices of the cells used for fitting: about ``fraction`` of them, evenly spread, and all that readers labelled."""
    even = _evenly(len(bag), fraction)
    return even if bag.verdicts is None else torch.cat([even, (bag.verdicts >= 0).nonzero()[:, 0]]).unique()


def _sorted_by_label(
    bags: Sequence[TrainingBag], relative: Sequence[Sequence[Tensor]], kept: Sequence[Tensor], fold: Sequence[int]
) -> tuple[list[list[list[Tensor]]], Folds, list[Tensor]]:
    """Sort cells into those known to be normal and those of positive bags.

    Cells of a positive bag that readers rejected count as normal. Cells of a negative bag that they called abnormal are
    left out.

    Returns:
        A list of (n, K) per side and subspace, the folds of each side, and a mask of confirmed cells per positive bag.
    """
    normal: list[tuple[int, Tensor]] = []
    rejected: list[tuple[int, Tensor]] = []
    suspected: list[tuple[int, Tensor]] = []
    for i, (bag, own) in enumerate(zip(bags, kept, strict=True)):
        abnormal, cleared = bag.have_verdict(1)[own], bag.have_verdict(0)[own]
        (suspected if bag.label else normal).append((i, ~cleared if bag.label else ~abnormal))
        if bag.label and bool(cleared.any()):
            rejected.append((i, cleared))
    normal += rejected
    sides = [[[own[i][mask] for i, mask in side] for own in relative] for side in (normal, suspected)]
    folds = [fold[i] for i, _ in normal], [fold[i] for i, _ in suspected]
    return sides, folds, [bags[i].have_verdict(1)[kept[i]][mask] for i, mask in suspected]


def _evenly(n: int, fraction: float) -> Tensor:
    """Indices of about ``fraction`` of ``n`` cells, evenly spread, at least one."""
    return torch.linspace(0, n - 1, max(1, round(fraction * n))).round().long()
