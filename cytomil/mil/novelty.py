"""Novelty: how much a slide differs from the training slides.

A new stain, scanner or focus shifts *all* cells of a slide slightly. Another type of specimen shifts them far. Novelty is
therefore measured by the average cell, not by the number of extreme cells. Normal values are measured on held-out training
slides, which are not part of the distribution that they are compared with (cross-conformal prediction: Vovk, 2015).
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
MANY_CELLS = 2048
"""The average cell of a slide with more cells is that of every eighth cell. Only these need comparable embeddings."""
_SAMPLED = 8
_COMPONENTS = 24
_CELLS_PER_COMPONENT = 10
_FITTED_CELLS = 20_000
_CLIP = 3.0
# Slides made from one pool of cells differ only by chance, but real slides differ by more. This is the min for real slides.
_MIN_SLIDE_SPREAD = 0.1
_MIN_LOG_SPREAD = 0.05  # smaller differences of distances are ignored
_BLOCK = 8192
_EPS = 1e-6  # relative to the training cells' squared distance, which is about 1


@dataclass(frozen=True)
class SlideNovelty:
    """How much one slide differs from the training slides.

    Args:
        shift: distance of its average cell from the training cells' (root mean square over the directions), in standard
            deviations of a cell.
        p_value: the probability, 0 to 1, that a slide like the training slides differs as much.
        farther_than_all: whether it differs more than every held-out training slide.
        is_beyond: bool (N,), the cells that differ more than 99 % of held-out training cells.
    """

    shift: float
    p_value: float
    farther_than_all: bool
    is_beyond: np.ndarray

    @property
    def is_unlike(self) -> bool:
        """Whether the slide differs so much from the training slides that the model is unreliable.

        There are two cases. Either the slide differs more than all held-out training slides, and fewer than 5 % of similar
        slides would differ as much. Or its average cell is shifted by more than one standard deviation of a cell,
        regardless of the differences between training slides.
        """
        return (self.farther_than_all and self.p_value < UNLIKE_BELOW) or self.shift > MAX_SHIFT


@dataclass(frozen=True)
class _Axes:
    """The axes along which cells are measured: ``mean``, ``weight`` (D,), ``axes`` (D, K), ``spread`` (K,); float64."""

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
        # Groups of columns, such as stages, have the same weight, regardless of their number of columns.
        weight = torch.cat(
            [1 / (part.clamp(min=min_spread(part)) * max(len(part), 1) ** 0.5) for part in split(std, bags[0].groups)]
        )
        with np.errstate(invalid="ignore"):  # identical cells have no variance to explain
            fitted = PCA(n_components, svd_solver="randomized", random_state=0).fit(((cells - mean) * weight).numpy())
        spread = torch.from_numpy(np.sqrt(np.maximum(np.nan_to_num(fitted.explained_variance_), _EPS)))
        return cls(
            mean.double(), weight.double(), torch.from_numpy(fitted.components_.T.copy()).double(), spread.double()
        )

    def measure(self, cells: Tensor) -> Tensor:
        """Cells (n, D) → (n, K + 2): components in units of their spread, log distance within them, log of the residual."""
        centred = (cells.double() - self.mean) * self.weight
        components = centred @ self.axes
        residual = centred.square().sum(dim=1) - components.square().sum(dim=1)
        components = components / self.spread
        within = components.square().mean(dim=1)
        return torch.cat([components, torch.stack([within, residual], dim=1).clamp(min=_EPS).log()], dim=1)


@dataclass(frozen=True)
class Novelty:
    """Normal values of the training slides, all float64 tensors.

    Args:
        mean: of the training cells, (D,).
        weight: per dimension, (D,).
        axes: the training cells' leading components, (D, K).
        spread: standard deviation along each component, (K,).
        usual: (2, 2), mean and standard deviation of held-out cells' log distance, within the components and outside.
        cell_limit: (1,), the 99 % quantile of the held-out cells' distances.
        slide_variance: (1,), the variance of slides' average cells that their numbers of cells do not explain.
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

    def measure(self, blocks: Iterable[np.ndarray]) -> SlideNovelty:
        """The novelty of a slide, from its cells' embeddings: blocks of float32 (n, D), with N ≥ 1 cells in total."""
        reading = self.begin()
        for block in blocks:
            reading.add(block)
        return reading.result()

    def begin(self) -> NoveltyReading:
        """Start reading a slide."""
        return NoveltyReading(self)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def is_sampled(start: int, n: int) -> np.ndarray:
    """Which of the cells ``start`` to ``start + n`` of a slide with more than `MANY_CELLS` are measured, bool (n,)."""
    return np.arange(start, start + n) % _SAMPLED == 0


class NoveltyReading:
    """Measures the novelty of a slide block by block. It keeps one byte per cell."""

    def __init__(self, novelty: Novelty) -> None:
        self._novelty = novelty
        self._axes = _Axes(novelty.mean, novelty.weight, novelty.axes, novelty.spread)
        self._all = _Sum(len(novelty.spread) + 2)
        self._sample = _Sum(len(novelty.spread) + 2)
        self._beyond = Gathered()

    def add(self, block: np.ndarray) -> None:
        """Take the slide's next embeddings, float32 (n, D)."""
        for part in torch.from_numpy(block).split(_BLOCK):
            measured = _standardised(self._axes.measure(part), self._novelty.usual)
            clipped = measured.clamp(-_CLIP, _CLIP)
            self._sample.add(clipped[torch.from_numpy(is_sampled(self._all.n, len(part)))])
            self._all.add(clipped)
            self._beyond.add(_outlyingness(measured) > self._novelty.cell_limit)

    def result(self) -> SlideNovelty:
        """The slide's novelty, from N ≥ 1 cells."""
        held_out = self._novelty.held_out
        measured = self._all if self._all.n <= MANY_CELLS else self._sample
        mean_square = float((measured.total / measured.n).square().mean())
        statistic = _statistic(mean_square, measured.n, float(self._novelty.slide_variance))
        return SlideNovelty(
            shift=mean_square**0.5,
            p_value=_p_value(statistic, held_out.numpy(), len(measured.total)),
            farther_than_all=bool(statistic > held_out.max()),
            is_beyond=self._beyond.all().numpy(),
        )


class _Sum:
    """A sum of rows, and their number."""

    def __init__(self, dim: int) -> None:
        self.total = torch.zeros(dim, dtype=torch.float64)
        self.n = 0

    def add(self, rows: Tensor) -> None:
        self.total += rows.sum(dim=0)
        self.n += len(rows)


def fit_novelty(bags: Sequence[TrainingBag], fold: np.ndarray) -> Novelty:
    """Measure the normal values of ``bags``. Those with the same ``fold``, (n_bags,), are held out together.

    A slide's statistic is the mean square of its average cell over the directions, with cells clipped to ±3, divided by its
    expectation: the variance between slides plus 1 / (number of cells). Small and large bags are thus comparable.
    """
    kept = [[bag for bag, other in zip(bags, fold, strict=True) if other != n] for n in range(int(fold.max()) + 1)]
    fewest = min(sum(len(bag) for bag in training) for training in kept)
    # At most half of the dimensions, so that there is a residual to measure.
    n_components = max(1, min(_COMPONENTS, fewest // _CELLS_PER_COMPONENT, bags[0].dim // 2))
    held: list[Tensor] = [torch.empty(0)] * len(bags)
    for number, training in enumerate(kept):
        axes = _Axes.of(training, n_components)
        for i in np.flatnonzero(fold == number).tolist():
            held[i] = axes.measure(bags[i].values)
    logs = torch.cat(held)[:, -2:]
    usual = torch.stack([logs.mean(dim=0), logs.std(dim=0, correction=0).clamp(min=_MIN_LOG_SPREAD)])
    measured = [_standardised(one, usual) for one in held]
    squares = np.array([float(one.clamp(-_CLIP, _CLIP).mean(dim=0).square().mean()) for one in measured])
    sizes = np.array([len(one) for one in measured])
    variance = max(_MIN_SLIDE_SPREAD**2, float((squares - 1 / sizes).mean()))
    statistics = [_statistic(square, n, variance) for square, n in zip(squares, sizes, strict=True)]
    limit = np.quantile(torch.cat([_outlyingness(one) for one in measured]).numpy(), CELL_QUANTILE)
    axes = _Axes.of(bags, n_components)
    return Novelty(
        **vars(axes),
        usual=usual,
        cell_limit=torch.tensor([limit], dtype=torch.float64),
        slide_variance=torch.tensor([variance], dtype=torch.float64),
        held_out=torch.tensor(statistics, dtype=torch.float64),
    )


def _even_sample(bags: Sequence[TrainingBag]) -> Tensor:
    max_cells = max(1, _FITTED_CELLS // len(bags))
    return torch.cat([bag.select(slice(None, None, -(-len(bag) // max_cells))) for bag in bags])


def _standardised(measured: Tensor, usual: Tensor) -> Tensor:
    mean, std = usual
    return torch.cat([measured[:, :-2], (measured[:, -2:] - mean) / std], dim=1)


def _outlyingness(measured: Tensor) -> Tensor:
    """The larger of the two distances of each cell, (n, K + 2) → (n,)."""
    return measured[:, -2:].amax(dim=1)


def _statistic(mean_square: float, n: int, slide_variance: float) -> float:
    return float(np.log(max(mean_square, _EPS) / (slide_variance + 1 / n)))


def _p_value(statistic: float, held_out: np.ndarray, n_directions: int) -> float:
    """One-sided, by Student's prediction interval for one more draw from a normal distribution."""
    from scipy.stats import t

    n = len(held_out)
    # The log of a mean of this many squares varies by at least this much, even if the few slides are very similar.
    std = max(float(held_out.std(ddof=1)), (2 / n_directions) ** 0.5)
    return float(t.sf((statistic - held_out.mean()) / (std * (1 + 1 / n) ** 0.5), n - 1))
