"""How unlike the training slides a slide is: the model's own limits, watched.

A stain, a scanner or a focus that the model has not seen moves *all* cells of a slide a little; another specimen moves them
far. So a slide is judged by where its average cell lies, not by how many of its cells are extreme. What is usual is
measured on training slides that had no part in shaping the cloud they are compared with (cross-conformal prediction:
Vovk, "Cross-conformal predictors", 2015).
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
MOST_SHIFT = 1.0
_COMPONENTS = 24
_CELLS_PER_COMPONENT = 10
_FITTED_CELLS = 20_000
_CLIP = 3.0
# Slides made of one pool of cells differ by chance alone, real ones do not: the least that slides are taken to differ by.
_LEAST_SLIDE_SPREAD = 0.1
_LEAST_LOG_SPREAD = 0.05  # distances that differ by less differ by nothing
_BLOCK = 8192
_TINY = 1e-6  # of the training cells' own squared distance, which is about 1


@dataclass(frozen=True)
class SlideNovelty:
    """How unlike the training slides one slide is.

    ``shift``: how far its average cell lies from the training cells' (root mean square over the directions), in standard
    deviations of a cell. ``p_value``: the chance, 0 to 1, that a slide like the training ones lies as far out.
    ``farther_than_all``: whether it lies farther out than every held-out training slide. ``is_beyond``: bool (N,), the
    cells that are farther out than 99 % of held-out training cells.
    """

    shift: float
    p_value: float
    farther_than_all: bool
    is_beyond: np.ndarray

    @property
    def is_unlike(self) -> bool:
        """Whether the slide is too unlike the training slides for the model to be relied on.

        Either it lies farther out than all held-out training slides, where fewer than 5 % of slides like them would lie; or
        its average cell lies a whole standard deviation of a cell out in the mean direction, however the training slides
        may differ among themselves.
        """
        return (self.farther_than_all and self.p_value < UNLIKE_BELOW) or self.shift > MOST_SHIFT


@dataclass(frozen=True)
class _Cloud:
    """Directions in which cells are measured. ``mean`` and ``weight`` (D,), ``axes`` (D, K), ``spread`` (K,); float64."""

    mean: Tensor
    weight: Tensor
    axes: Tensor
    spread: Tensor

    @classmethod
    def of(cls, bags: Sequence[TrainingBag], n_components: int) -> Self:
        """The leading principal components of the bags' cells; of many cells, an even sample."""
        from sklearn.decomposition import PCA

        cells = _even_sample(bags)
        mean, std = cells.mean(dim=0), cells.std(dim=0, correction=0)
        # Groups of columns, such as stages, are to count alike, though some have many more.
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
    """What is usual among the training slides; all of it tensors, float64.

    ``mean``, ``weight`` (D,), ``axes`` (D, K), ``spread`` (K,): the training cells' leading components. ``usual`` (2, 2):
    mean and standard deviation of held-out cells' log distance within the components and outside of them. ``cell_limit`` (1,):
    above it a cell is farther out than 99 % of held-out cells. ``slide_variance`` (1,): of slides' average cells, beyond
    what the number of cells explains. ``held_out`` (n,): the log statistics of the n training slides, each held out.
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
        """Judge a slide by its cells' embeddings, float32 (n, D) a block, N ≥ 1 in all."""
        reading = self.begin()
        for block in blocks:
            reading.add(block)
        return reading.result()

    def begin(self) -> NoveltyReading:
        """Begin to judge a slide."""
        return NoveltyReading(self)

    def tensors(self) -> dict[str, Tensor]:
        """All that it knows, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class NoveltyReading:
    """One slide on its way past what is usual; of its cells one number each is held."""

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
        """What is to be said of the slide, of N ≥ 1 cells."""
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
    """Measure what is usual among ``bags``; ``fold`` (n_bags,) says which of them are held out together.

    A slide's statistic is the mean square of its average cell over the directions, each cell clipped to ±3, over what
    is expected: the slides' own variance and 1 / (number of cells), so that small and large bags are comparable.
    """
    kept = [[bag for bag, other in zip(bags, fold, strict=True) if other != n] for n in range(int(fold.max()) + 1)]
    fewest = min(sum(len(bag) for bag in some) for some in kept)
    # Half the dimensions at the most, so that there is a rest to measure.
    n_components = max(1, min(_COMPONENTS, fewest // _CELLS_PER_COMPONENT, bags[0].dim // 2))
    held: list[Tensor] = [torch.empty(0)] * len(bags)
    for number, some in enumerate(kept):
        cloud = _Cloud.of(some, n_components)
        for i in np.flatnonzero(fold == number).tolist():
            held[i] = cloud.measure(bags[i].values)
    logs = torch.cat(held)[:, -2:]
    usual = torch.stack([logs.mean(dim=0), logs.std(dim=0, correction=0).clamp(min=_LEAST_LOG_SPREAD)])
    measured = [_standardised(one, usual) for one in held]
    squares = np.array([float(one.clamp(-_CLIP, _CLIP).mean(dim=0).square().mean()) for one in measured])
    sizes = np.array([len(one) for one in measured])
    variance = max(_LEAST_SLIDE_SPREAD**2, float((squares - 1 / sizes).mean()))
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
    return torch.cat([bag.some(slice(None, None, -(-len(bag) // most))) for bag in bags])


def _standardised(measured: Tensor, usual: Tensor) -> Tensor:
    mean, std = usual
    return torch.cat([measured[:, :-2], (measured[:, -2:] - mean) / std], dim=1)


def _outlyingness(measured: Tensor) -> Tensor:
    """How far out each cell is, (n, K + 2) → (n,): the larger of its two distances."""
    return measured[:, -2:].amax(dim=1)


def _statistic(mean_square: float, n: int, slide_variance: float) -> float:
    return float(np.log(max(mean_square, _TINY) / (slide_variance + 1 / n)))


def _p_value(statistic: float, held_out: np.ndarray, n_directions: int) -> float:
    """One-sided, by Student's prediction interval for one more draw from a normal distribution."""
    from scipy.stats import t

    n = len(held_out)
    # Log of a mean of this many squares spreads by at least that much, however alike the few slides at hand are.
    std = max(float(held_out.std(ddof=1)), (2 / n_directions) ** 0.5)
    return float(t.sf((statistic - held_out.mean()) / (std * (1 + 1 / n) ** 0.5), n - 1))
