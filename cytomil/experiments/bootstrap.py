"""Bootstrap intervals of a mean over runs, and of the difference of two such means, over runs and by patient or bag.

The percentile bootstrap of `scipy.stats.bootstrap`, in two stages: runs (seeds) are drawn, and within them their test bags,
so that the interval speaks of other seeds too; a single run has nothing to draw from, and its interval is of its bags alone.
Positive and negative units are drawn apart, because half of the protocol's test bags are positive by design, and so are
those of different bag sets. Runs on the same bags (methods; or encoders of several seeds) are given the same draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cytomil.experiments.figures import FIGURES, Counts, units_of
from cytomil.experiments.runs import Run

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over runs, as a share of 1. ``low`` and ``high`` are None where the bags are too few to draw from."""

    mean: float | None
    low: float | None
    high: float | None
    by_run: tuple[float | None, ...]

    @property
    def sd(self) -> float | None:
        """Standard deviation over runs (n - 1); None for fewer than two."""
        known = [value for value in self.by_run if value is not None]
        return float(np.std(known, ddof=1)) if len(known) > 1 else None


def estimate(runs: Sequence[Run], resamples: int, seed: int) -> dict[str, Estimate]:
    """Every figure's mean over ``runs`` with its interval, by the figure's key."""
    return _estimate([(run, None) for run in runs], resamples, seed)


def estimate_differences(pairs: Sequence[tuple[Run, Run]], resamples: int, seed: int) -> dict[str, Estimate]:
    """Every figure's mean difference, first minus second, over pairs of runs on the same bags, with its interval."""
    return _estimate(pairs, resamples, seed)


def _estimate(pairs: Sequence[tuple[Run, Run | None]], resamples: int, seed: int) -> dict[str, Estimate]:
    sets = {run.fingerprint: units_of(run.record.bags) for run, _ in pairs}
    weighed = [(run.fingerprint, _weigh(run, other)) for run, other in pairs]
    as_it_is = {name: np.ones(len(units)) for name, units in sets.items()}
    by_run = np.array([figures(as_it_is[name]) for name, figures in weighed])
    mean = _mean_of_known(by_run)
    drawn = np.array([len(pairs) > 1 or figure.by_bags for figure in FIGURES]) & ~np.isnan(mean)
    low, high = np.full((2, len(FIGURES)), np.nan)
    low[drawn], high[drawn] = _interval(sets, weighed, drawn, resamples, seed)
    return {
        figure.key: Estimate(
            _known(mean[i]), _known(low[i]), _known(high[i]), tuple(_known(value) for value in by_run[:, i])
        )
        for i, figure in enumerate(FIGURES)
    }


def _weigh(run: Run, other: Run | None) -> Callable[[Counts], np.ndarray]:
    """All figures of a run, or their differences from another's, from counts (…, U) to (F, …)."""
    first = [figure.weigh(run.record) for figure in FIGURES]
    second = [figure.weigh(other.record) for figure in FIGURES] if other else []

    def figures(counts: Counts) -> np.ndarray:
        values = np.stack([figure(counts) for figure in first])
        return values - np.stack([figure(counts) for figure in second]) if second else values

    return figures


def _interval(
    sets: dict[str, list[tuple[str, int]]],
    weighed: Sequence[tuple[str, Callable[[Counts], np.ndarray]]],
    wanted: np.ndarray,
    resamples: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of the intervals of the ``wanted`` among the figures, a mask (F,); NaN where bags are too few to draw from."""
    from scipy.stats import bootstrap

    strata = [
        (name, np.array([i for i, (_, label) in enumerate(units) if label == side]))
        for name, units in sets.items()
        for side in (0, 1)
    ]
    strata = [(name, indices) for name, indices in strata if len(indices)]
    if not wanted.any() or any(len(indices) < 2 for _, indices in strata):
        unknown = np.full(wanted.sum(), np.nan)
        return unknown, unknown

    def statistic(*drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        counts = {name: np.zeros((*drawn[0].shape[:axis], len(units))) for name, units in sets.items()}
        for (name, _), indices in zip(strata, drawn, strict=False):
            counts[name] += _counts(indices, len(sets[name]))
        values = np.stack([figures(counts[name])[wanted] for name, figures in weighed])
        if len(weighed) < 2:
            return _mean_of_known(values)
        runs = np.moveaxis(_counts(drawn[-1], len(weighed)), -1, 0)
        return _mean_of_known(values, runs[:, None])

    # scipy asks for two members at least in whatever is drawn.
    runs = [np.arange(len(weighed))] if len(weighed) > 1 else []
    drawn = bootstrap(
        (*(indices for _, indices in strata), *runs),
        statistic,
        n_resamples=resamples,
        vectorized=True,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    # A draw in which a figure is not defined says nothing of it.
    tail = 100 * (1 - LEVEL) / 2
    draws = drawn.bootstrap_distribution
    return _percentile_of_known(draws, tail), _percentile_of_known(draws, 100 - tail)


def _counts(indices: np.ndarray, n_units: int) -> Counts:
    """How often each of ``n_units`` occurs in each row of ``indices`` (…, n): (…, n_units)."""
    rows = indices.reshape(-1, indices.shape[-1])
    flat = np.arange(len(rows))[:, None] * n_units + rows
    counted = np.bincount(flat.ravel(), minlength=len(rows) * n_units)
    return counted.reshape(*indices.shape[:-1], n_units)


def _percentile_of_known(values: np.ndarray, q: float) -> np.ndarray:
    return np.array([np.percentile(row[~np.isnan(row)], q) if (~np.isnan(row)).any() else np.nan for row in values])


def _mean_of_known(values: np.ndarray, weights: np.ndarray | float = 1.0) -> np.ndarray:
    """Weighted mean over the first axis, of the values that are defined; NaN where none has any weight."""
    known = np.where(np.isnan(values), 0.0, weights)
    total, number = (known * np.nan_to_num(values)).sum(axis=0), known.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return np.where(number > 0, total / number, np.nan)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
