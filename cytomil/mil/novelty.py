"""Novelty: how much a slide differs from the training slides.

A new stain, scanner or focus moves *all* cells of a slide a little; another type of specimen moves them far. A slide is
therefore judged by its average cell, not by the number of its extreme cells. Normal values are measured on held-out training
slides, which had no part in the distribution they are compared with (cross-conformal prediction: Vovk, 2015).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from torch import Tensor

from cytomil.mil.aggregators.base import Gathered
from cytomil.mil.bags import TrainingBag, min_spread, split

CELL_QUANTILE = 0.99
UNLIKE_BELOW = 0.05
MAX_SHIFT = 1.0
_COMPONENTS = 24
_CELLS_PER_COMPONENT = 10
_FITTED_CELLS = 20_000
_CLIP = 3.0
# Slides made of one pool of cells differ only by chance, real ones do not. This is the minimum for real ones.
_MIN_SLIDE_SPREAD = 0.1
_MIN_LOG_SPREAD = 0.05  # smaller differences of distances count as none
_BLOCK = 8192
_TINY = 1e-6  # of the training cells' own squared distance, which is about 1


@dataclass(frozen=True)
class SlideNovelty:
    """How much one slide differs from the training slides.

    Args:
        shift: distance of its average cell from the training cells' (root mean square over the directions), in standard
            deviations of a cell.
        p_value: the probability, 0 to 1, that a slide like the training ones lies as far out.
        farther_than_all: whether it lies farther out than every held-out training slide.
        is_beyond: bool (N,), the cells that lie farther out than 99 % of held-out training cells.
    """

    shift: float
    p_value: float
    farther_than_all: bool
    is_beyond: np.ndarray

    @property
    def is_unlike(self) -> bool:
        """Whether the slide differs too much from the training slides for the model to be relied on.

        Either it lies farther out than all held-out training slides and than 95 % of slides like them would; or its average
        cell is shifted by more than one standard deviation of a cell, however much training slides differ among themselves.
        """
        return (self.farther_than_all and self.p_value < UNLIKE_BELOW) or self.shift > MAX_SHIFT


@dataclass(frozen=True)
class _Cloud:
    """Directions that cells are measured along: ``mean``, ``weight`` (D,), ``axes`` (D, K), ``spread`` (K,); float64."""

    mean: Tensor
    weight: Tensor
    axes: Tensor
    spread: Tensor

    @classmethod
    def of(cls, bags: Sequence[TrainingBag], n_components: int) -> Self:
        """The leading principal components of the bags' cells, or of an even sample of them."""
        from sklearn.decomposition import PCA

        cells = _even_sample(bags)
        mean, std = cells.mean(dim=0), cells.std(dim=0, correction=0)
        # Groups of columns, such as stages, have the same weight, however many columns they have.
        weight = torch.cat(
            [1 / (part.clamp(min=min_spread(part)) * max(len(part), 1) ** 0.5) for part in split(std, bags[0].groups)]
        )
        with np.errstate(invalid="ignore"):  # identical cells have no variance to explain
            fitted = PCA(n_components, svd_solver="randomized", random_state=0).fit(((cells - mean) * weight).numpy())
        spread = torch.from_numpy(np.sqrt(np.maximum(np.nan_to_num(fitted.explained_variance_), _TINY)))
        return cls(
            mean.double(), weight.double(), torch.from_numpy(fitted.components_.T.copy()).double(), spread.double()
        )

    def measure(self, cells: Tensor) -> Tensor:
        """Cells (n, D) → (n, K + 2): components in units of their spread, log distance within them, log of the rest."""
        centred = (cells.double() - self.mean) * self.weight
        components = centred @ self.axes
        rest = centred.square().sum(dim=1) - components.square().sum(dim=1)
        components = components / self.spread
        within = components.square().mean(dim=1)
        return torch.cat([components, torch.stack([within, rest], dim=1).clamp(min=_TINY).log()], dim=1)


@dataclass(frozen=True)
class Novelty:
    """Normal values of the training slides, all float64 tensors.

    Args:
        mean: of the training cells, (D,).
        weight: per dimension, (D,).
        axes: the training cells' leading components, (D, K).
        spread: standard deviation along each component, (K,).
        usual: (2, 2), mean and standard deviation of held-out cells' log distance, within the components and outside.
        cell_limit: (1,), above it a cell lies farther out than 99 % of held-out cells.
        slide_variance: (1,), of slides' average cells, beyond what the number of cells explains.
        held_out: (n,), the log statistics of the n training slides, each held out.
    """

    mean: Tensor
    weight: Tensor
    axes: Tensor
    spread: Tensor
    usual: Tensor
    cell_limit: Tensor
    slide_variance: Tensor
    held_out: Tensor

    def judge(self, blocks: Iterable[np.ndarray]) -> SlideNovelty:
        """Judge a slide by its cells' embeddings, float32 (n, D) per block, N ≥ 1 in all."""
        reading = self.begin()
        for block in blocks:
            reading.add(block)
        return reading.result()

    def begin(self) -> NoveltyReading:
        """Begin to judge a slide."""
        return NoveltyReading(self)

    def tensors(self) -> dict[str, Tensor]:
        """All of its tensors, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class NoveltyReading:
    """Judges one slide block by block, keeping one number per cell."""

    def __init__(self, novelty: Novelty) -> None:
        self._novelty = novelty
        self._cloud = _Cloud(novelty.mean, novelty.weight, novelty.axes, novelty.spread)
        self._total = torch.zeros(len(novelty.spread) + 2, dtype=torch.float64)
        self._n = 0
        self._outside = Gathered()

    def add(self, block: np.ndarray) -> None:
        """Take the slide's next embeddings, float32 (n, D)."""
        for part in torch.from_numpy(block).split(_BLOCK):
            measured = _standardised(self._cloud.measure(part), self._novelty.usual)
            self._total += measured.clamp(-_CLIP, _CLIP).sum(dim=0)
            self._n += len(part)
            self._outside.add(_outlyingness(measured))

    def result(self) -> SlideNovelty:
        """The slide's novelty, from N ≥ 1 cells."""
        held_out = self._novelty.held_out
        mean_square = float((self._total / self._n).square().mean())
        statistic = _statistic(mean_square, self._n, float(self._novelty.slide_variance))
        is_beyond = (self._outside.all() > self._novelty.cell_limit).numpy()
        return SlideNovelty(
            shift=mean_square**0.5,
            p_value=_p_value(statistic, held_out.numpy(), len(self._total)),
            farther_than_all=bool(statistic > held_out.max()),
            is_beyond=is_beyond,
        )


def fit_novelty(bags: Sequence[TrainingBag], fold: np.ndarray) -> Novelty:
    """Measure the normal values of ``bags``. Those with the same ``fold``, (n_bags,), are held out together.

    A slide's statistic is the mean square of its average cell over the directions, with cells clipped to ±3, divided by its
    expectation: the variance between slides plus 1 / (number of cells). Small and large bags are thus comparable.
    """
    kept = [[bag for bag, other in zip(bags, fold, strict=True) if other != n] for n in range(int(fold.max()) + 1)]
    fewest = min(sum(len(bag) for bag in some) for some in kept)
    # Half the dimensions at most, so that a rest remains to be measured.
    n_components = max(1, min(_COMPONENTS, fewest // _CELLS_PER_COMPONENT, bags[0].dim // 2))
    held: list[Tensor] = [torch.empty(0)] * len(bags)
    for number, some in enumerate(kept):
        cloud = _Cloud.of(some, n_components)
        for i in np.flatnonzero(fold == number).tolist():
            held[i] = cloud.measure(bags[i].values)
    logs = torch.cat(held)[:, -2:]
    usual = torch.stack([logs.mean(dim=0), logs.std(dim=0, correction=0).clamp(min=_MIN_LOG_SPREAD)])
    measured = [_standardised(one, usual) for one in held]
    squares = np.array([float(one.clamp(-_CLIP, _CLIP).mean(dim=0).square().mean()) for one in measured])
    sizes = np.array([len(one) for one in measured])
    variance = max(_MIN_SLIDE_SPREAD**2, float((squares - 1 / sizes).mean()))
    statistics = [_statistic(square, n, variance) for square, n in zip(squares, sizes, strict=True)]
    limit = np.quantile(torch.cat([_outlyingness(one) for one in measured]).numpy(), CELL_QUANTILE)
    whole = _Cloud.of(bags, n_components)
    return Novelty(
        **vars(whole),
        usual=usual,
        cell_limit=torch.tensor([limit], dtype=torch.float64),
        slide_variance=torch.tensor([variance], dtype=torch.float64),
        held_out=torch.tensor(statistics, dtype=torch.float64),
    )


def _even_sample(bags: Sequence[TrainingBag]) -> Tensor:
    most = max(1, _FITTED_CELLS // len(bags))
    return torch.cat([bag.select(slice(None, None, -(-len(bag) // most))) for bag in bags])


def _standardised(measured: Tensor, usual: Tensor) -> Tensor:
    mean, std = usual
    return torch.cat([measured[:, :-2], (measured[:, -2:] - mean) / std], dim=1)


def _outlyingness(measured: Tensor) -> Tensor:
    """How far out each cell lies, (n, K + 2) → (n,): the larger of its two distances."""
    return measured[:, -2:].amax(dim=1)


def _statistic(mean_square: float, n: int, slide_variance: float) -> float:
    return float(np.log(max(mean_square, _TINY) / (slide_variance + 1 / n)))


def _p_value(statistic: float, held_out: np.ndarray, n_directions: int) -> float:
    """One-sided, by Student's prediction interval for one more draw from a normal distribution."""
    from scipy.stats import t

    n = len(held_out)
    # The log of a mean of this many squares varies by at least this much, however alike the few slides are.
    std = max(float(held_out.std(ddof=1)), (2 / n_directions) ** 0.5)
    return float(t.sf((statistic - held_out.mean()) / (std * (1 + 1 / n) ** 0.5), n - 1))
