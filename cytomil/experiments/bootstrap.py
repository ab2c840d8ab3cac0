"""Bootstrap intervals of mean metrics over runs, and of their differences, over runs and patients or bags.

This is the percentile bootstrap of `scipy.stats.bootstrap` in two stages. Runs (seeds) are drawn, and test bags within
them, so that the interval covers other seeds too. The interval of a single run is over its bags only. Positive and
negative units are drawn separately, because half of the test bags are positive by design. Different sets of bags are
drawn separately too. Runs on the same bags (other methods, or other seeds of the encoder) get the same draw.

A metric is a function of the number of times that each unit (a patient or a bag) counts. In this form, one matrix
product computes a metric and all its resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cytomil.bags.manifest import patient_key
from cytomil.evaluation.record import EvaluationRecord, RecordedBag, RecordedRedrawn
from cytomil.experiments.runs import Run

Counts = np.ndarray
"""Number of times that each unit counts, (…, U); ones for the original set."""


@dataclass(frozen=True)
class Metric:
    """One metric in the tables.

    Args:
        key: its name in files.
        title: its name in tables.
        statistic: turns the record of a run into a function from counts (…, U) to values (…,).
        by_bags: whether the metric follows from single bags; if not, only runs are drawn.
    """

    key: str
    title: str
    statistic: Callable[[EvaluationRecord], Callable[[Counts], np.ndarray]]
    by_bags: bool = True


def units_of(bags: Sequence[RecordedBag]) -> list[tuple[str, int]]:
    """The units of one evaluation, sorted: the patient, or the bag if the patient is unknown, and its max label."""
    labels: dict[str, int] = {}
    for bag in bags:
        unit = unit_of(bag)
        labels[unit] = max(labels.get(unit, 0), bag.label)
    return sorted(labels.items())


def unit_of(bag: RecordedBag) -> str:
    """The unit that the bootstrap draws as a whole, because slides of one patient are not independent."""
    return bag.patient_key or patient_key(bag.patient_id) or f"bag:{bag.bag_id}"


def by_unit(bags: Sequence[RecordedBag]) -> list[list[RecordedBag]]:
    """The bags of an evaluation, grouped by unit in the order of `units_of`."""
    return [[bag for bag in bags if unit_of(bag) == unit] for unit, _ in units_of(bags)]


def _mean_of(key: str) -> Callable[[EvaluationRecord], Callable[[Counts], np.ndarray]]:
    def statistic(record: EvaluationRecord) -> Callable[[Counts], np.ndarray]:
        units = by_unit(record.bags)
        values = [[value for bag in unit if (value := getattr(bag, key)) is not None] for unit in units]
        sums, numbers = np.array([sum(v) for v in values], float), np.array([len(v) for v in values], float)
        return lambda counts: _ratio(counts @ sums, counts @ numbers)

    return statistic


def _redrawn(
    measure: Callable[[RecordedRedrawn], float],
) -> Callable[[EvaluationRecord], Callable[[Counts], np.ndarray]]:
    """A metric of redrawn bags, if the record has any. It does not depend on counts."""

    def statistic(record: EvaluationRecord) -> Callable[[Counts], np.ndarray]:
        found = record.metrics.redrawn
        value = measure(found) if found else np.nan
        return lambda counts: np.full(counts.shape[:-1], value)

    return statistic


def _f1(record: EvaluationRecord) -> Callable[[Counts], np.ndarray]:
    units = by_unit(record.bags)
    hits = np.array([sum(b.label and b.called_positive for b in unit) for unit in units], float)
    both = np.array([sum(b.label + b.called_positive for b in unit) for unit in units], float)
    return lambda counts: _ratio(2 * counts @ hits, counts @ both)


def _auroc(record: EvaluationRecord) -> Callable[[Counts], np.ndarray]:
    """Fraction of pairs of a positive and a negative bag in the right order, including pairs within a unit; ties count ½."""
    units = by_unit(record.bags)
    positive = [[b.probability for b in unit if b.label] for unit in units]
    negative = [[b.probability for b in unit if not b.label] for unit in units]
    wins = np.array([[sum((p > n) + 0.5 * (p == n) for p in ps for n in ns) for ns in negative] for ps in positive])
    n_positive, n_negative = np.array([len(p) for p in positive], float), np.array([len(n) for n in negative], float)
    return lambda counts: _ratio(
        ((counts @ wins.astype(float)) * counts).sum(axis=-1), (counts @ n_positive) * (counts @ n_negative)
    )


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


METRICS = (
    Metric("f1", "bag F1", _f1),
    Metric("recall_at_40pct", "Recall@40 %", _mean_of("recall_at_40pct")),
    Metric("recall_at_5pct", "Recall@5 %", _mean_of("recall_at_5pct")),
    Metric("instance_auroc", "instance AUROC", _mean_of("auroc")),
    Metric("bag_auroc", "bag AUROC", _auroc),
    Metric("redrawn_auroc", "bag AUROC, redrawn bags", _redrawn(lambda found: found.bag.auroc), False),
    Metric("redrawn_f1", "bag F1, redrawn bags", _redrawn(lambda found: found.bag.f1), False),
    Metric(
        "threshold_cost",
        "bag F1 under the best threshold's, redrawn bags",
        _redrawn(lambda found: found.best_f1 - found.bag.f1),
        by_bags=False,
    ),
)


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
