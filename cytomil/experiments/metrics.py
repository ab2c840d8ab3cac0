"""The metrics in the tables, as functions of how often each unit (a patient or a bag) counts.

In this form, a metric and its bootstrap resamples are one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cytomil.bags.fitted import patient_key
from cytomil.evaluation.record import EvaluationRecord, RecordedBag, RecordedRedrawn

Counts = np.ndarray
"""How often each unit counts, (…, U); ones for the original set."""


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
