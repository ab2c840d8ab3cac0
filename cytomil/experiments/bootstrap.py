"""Bootstrap intervals of a mean over runs, and of the difference of two such means, over runs and patients or bags.

This is the percentile bootstrap of `scipy.stats.bootstrap` in two stages. Runs (seeds) are drawn, and test bags within
them, so that the interval covers other seeds too. The interval of a single run is over its bags only. Positive and negative
units are drawn separately, because half of the test bags are positive by design. Different sets of bags are drawn separately
too. Runs on the same bags (other methods, or other seeds of the encoder) get the same draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cytomil.experiments.metrics import METRICS, Counts, units_of
from cytomil.experiments.runs import Run

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over runs, as a fraction. ``low`` and ``high`` are None if there are too few bags to draw from."""

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
    """The mean of every metric over ``runs`` with its interval, by the key of the metric."""
    return _estimate([(run, None) for run in runs], resamples, seed)


def estimate_differences(pairs: Sequence[tuple[Run, Run]], resamples: int, seed: int) -> dict[str, Estimate]:
    """The mean difference of every metric, first minus second, over pairs of runs on the same bags, with its interval."""
    return _estimate(pairs, resamples, seed)


def _estimate(pairs: Sequence[tuple[Run, Run | None]], resamples: int, seed: int) -> dict[str, Estimate]:
    sets = {run.fingerprint: units_of(run.record.bags) for run, _ in pairs}
    statistics = [(run.fingerprint, _statistics(run, other)) for run, other in pairs]
    ones = {name: np.ones(len(units)) for name, units in sets.items()}
    by_run = np.array([metrics(ones[name]) for name, metrics in statistics])
    mean = _mean_of_known(by_run)
    drawn = np.array([len(pairs) > 1 or metric.by_bags for metric in METRICS]) & ~np.isnan(mean)
    low, high = np.full((2, len(METRICS)), np.nan)
    low[drawn], high[drawn] = _interval(sets, statistics, drawn, resamples, seed)
    return {
        metric.key: Estimate(
            _known(mean[i]), _known(low[i]), _known(high[i]), tuple(_known(value) for value in by_run[:, i])
        )
        for i, metric in enumerate(METRICS)
    }


def _statistics(run: Run, other: Run | None) -> Callable[[Counts], np.ndarray]:
    """All metrics of a run, or their differences from another run: counts (…, U) → (F, …)."""
    first = [metric.statistic(run.record) for metric in METRICS]
    second = [metric.statistic(other.record) for metric in METRICS] if other else []

    def metrics(counts: Counts) -> np.ndarray:
        values = np.stack([metric(counts) for metric in first])
        return values - np.stack([metric(counts) for metric in second]) if second else values

    return metrics


def _interval(
    sets: dict[str, list[tuple[str, int]]],
    statistics: Sequence[tuple[str, Callable[[Counts], np.ndarray]]],
    wanted: np.ndarray,
    resamples: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of the intervals of the ``wanted`` metrics, a mask (F,); NaN if there are too few bags to draw from."""
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
        values = np.stack([metrics(counts[name])[wanted] for name, metrics in statistics])
        if len(statistics) < 2:
            return _mean_of_known(values)
        runs = np.moveaxis(_counts(drawn[-1], len(statistics)), -1, 0)
        return _mean_of_known(values, runs[:, None])

    # scipy requires at least two members in each sample.
    runs = [np.arange(len(statistics))] if len(statistics) > 1 else []
    drawn = bootstrap(
        (*(indices for _, indices in strata), *runs),
        statistic,
        n_resamples=resamples,
        vectorized=True,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    # Draws in which a metric is undefined are left out.
    tail = 100 * (1 - LEVEL) / 2
    draws = drawn.bootstrap_distribution
    return _percentile_of_known(draws, tail), _percentile_of_known(draws, 100 - tail)


def _counts(indices: np.ndarray, n_units: int) -> Counts:
    """The number of times that each unit occurs in each row of ``indices`` (…, n), as (…, n_units)."""
    rows = indices.reshape(-1, indices.shape[-1])
    flat = np.arange(len(rows))[:, None] * n_units + rows
    counted = np.bincount(flat.ravel(), minlength=len(rows) * n_units)
    return counted.reshape(*indices.shape[:-1], n_units)


def _percentile_of_known(values: np.ndarray, q: float) -> np.ndarray:
    return np.array([np.percentile(row[~np.isnan(row)], q) if (~np.isnan(row)).any() else np.nan for row in values])


def _mean_of_known(values: np.ndarray, weights: np.ndarray | float = 1.0) -> np.ndarray:
    """Weighted mean of the defined values over the first axis; NaN if their weights are 0."""
    known = np.where(np.isnan(values), 0.0, weights)
    total, number = (known * np.nan_to_num(values)).sum(axis=0), known.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return np.where(number > 0, total / number, np.nan)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
