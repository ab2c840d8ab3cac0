"""The figures that tables show, each as a function of how often every unit (a patient, or a bag) counts.

Written with weights, a figure and its bootstrap resamples are one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cytomil.evaluation.record import EvaluationRecord, RecordedBag, RecordedRedrawn

Counts = np.ndarray
"""How often each unit counts, (…, U); all ones is the set as it is."""


@dataclass(frozen=True)
class Figure:
    """One column family of the tables. ``weigh`` turns a run's record into figure(counts (…, U)) → (…,).

    ``by_bags`` is False of what does not follow from single bags: then only runs are drawn.
    """

    key: str
    title: str
    weigh: Callable[[EvaluationRecord], Callable[[Counts], np.ndarray]]
    by_bags: bool = True


def units_of(bags: Sequence[RecordedBag]) -> list[tuple[str, int]]:
    """The units of one evaluation, sorted: (patient, or bag where the patient is unknown; its greatest label)."""
    greatest: dict[str, int] = {}
    for bag in bags:
        unit = unit_of(bag)
        greatest[unit] = max(greatest.get(unit, 0), bag.label)
    return sorted(greatest.items())


def unit_of(bag: RecordedBag) -> str:
    """What is drawn as one in the bootstrap: cells and slides of one patient are not independent."""
    return bag.patient_id or f"bag:{bag.bag_id}"


def by_unit(bags: Sequence[RecordedBag]) -> list[list[RecordedBag]]:
    """An evaluation's bags grouped as `units_of` lists them."""
    return [[bag for bag in bags if unit_of(bag) == unit] for unit, _ in units_of(bags)]


def _mean_of(key: str) -> Callable[[EvaluationRecord], Callable[[Counts], np.ndarray]]:
    def weigh(record: EvaluationRecord) -> Callable[[Counts], np.ndarray]:
        units = by_unit(record.bags)
        values = [[value for bag in unit if (value := getattr(bag, key)) is not None] for unit in units]
        sums, numbers = np.array([sum(v) for v in values], float), np.array([len(v) for v in values], float)
        return lambda counts: _share(counts @ sums, counts @ numbers)

    return weigh


def _redrawn(
    measure: Callable[[RecordedRedrawn], float],
) -> Callable[[EvaluationRecord], Callable[[Counts], np.ndarray]]:
    """A figure of the bags redrawn from the measured ones' cells, where the record has any; counts do not change it."""

    def weigh(record: EvaluationRecord) -> Callable[[Counts], np.ndarray]:
        found = record.metrics.redrawn
        value = measure(found) if found else np.nan
        return lambda counts: np.full(counts.shape[:-1], value)

    return weigh


def _f1(record: EvaluationRecord) -> Callable[[Counts], np.ndarray]:
    units = by_unit(record.bags)
    hits = np.array([sum(b.label and b.called_positive for b in unit) for unit in units], float)
    both = np.array([sum(b.label + b.called_positive for b in unit) for unit in units], float)
    return lambda counts: _share(2 * counts @ hits, counts @ both)


def _auroc(record: EvaluationRecord) -> Callable[[Counts], np.ndarray]:
    """Pairs of a positive and a negative bag in the right order, a tie half; pairs within a unit count too."""
    units = by_unit(record.bags)
    positive = [[b.probability for b in unit if b.label] for unit in units]
    negative = [[b.probability for b in unit if not b.label] for unit in units]
    wins = np.array([[sum((p > n) + 0.5 * (p == n) for p in ps for n in ns) for ns in negative] for ps in positive])
    n_positive, n_negative = np.array([len(p) for p in positive], float), np.array([len(n) for n in negative], float)
    return lambda counts: _share(
        ((counts @ wins.astype(float)) * counts).sum(axis=-1), (counts @ n_positive) * (counts @ n_negative)
    )


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


FIGURES = (
    Figure("f1", "bag F1", _f1),
    Figure("recall_at_40pct", "Recall@40 %", _mean_of("recall_at_40pct")),
    Figure("recall_at_5pct", "Recall@5 %", _mean_of("recall_at_5pct")),
    Figure("instance_auroc", "instance AUROC", _mean_of("auroc")),
    Figure("bag_auroc", "bag AUROC", _auroc),
    Figure("redrawn_auroc", "bag AUROC, redrawn bags", _redrawn(lambda found: found.bag.auroc), False),
    Figure("redrawn_f1", "bag F1, redrawn bags", _redrawn(lambda found: found.bag.f1), False),
    Figure(
        "threshold_cost",
        "bag F1 under the best threshold's, redrawn bags",
        _redrawn(lambda found: found.best_f1 - found.bag.f1),
        by_bags=False,
    ),
)
