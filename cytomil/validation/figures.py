"""A model measured on labelled slides: figures with intervals, calls by label, and thresholds that would suit the slides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from cytomil.evaluation.intervals import Bounds, bag_intervals
from cytomil.evaluation.metrics import BagMetrics, bag_metrics
from cytomil.mil.thresholds import sensitivity_threshold, steady_f1_threshold
from cytomil.mil.triage_model import Weakness
from cytomil.triage.worklist import Call

MIN_SLIDES = 30
MIN_OF_A_LABEL = 5
_SEED = 0  # of the bootstraps behind the proposed threshold


@dataclass(frozen=True)
class MeasuredSlide:
    """A slide with its label (1 diseased, 0 healthy) and the model's result. ``patient_id`` is "" if unknown."""

    slide: str
    sha256: str
    label: int
    patient_id: str
    probability: float
    call: Call
    is_unlike: bool


@dataclass(frozen=True)
class Figure:
    """One figure, 0 to 1, with its 95 % interval; None where it is not defined, and ``reason`` says why.

    ``name`` and ``meaning`` are for a reader. ``hits`` of ``n`` slides gave a fraction; ``n`` is 0 for other figures.
    """

    key: str
    name: str
    meaning: str
    value: float | None
    interval: tuple[float, float] | None
    reason: str = ""
    hits: int = 0
    n: int = 0


@dataclass(frozen=True)
class LocalThresholds:
    """Thresholds chosen on the measured slides, and what they would give on these same slides, which is too optimistic.

    ``decision`` and ``low`` are probabilities, as in `cytomil.mil.thresholds.Thresholds`. ``sensitivity_wanted`` is the
    fraction of diseased slides at or above ``low``. Sensitivities and specificities are of ``decision`` and of ``low``.
    """

    decision: float
    low: float
    sensitivity_wanted: float
    sensitivities: tuple[float, float]
    specificities: tuple[float, float]


_AT_THRESHOLD = (
    (
        "review_first",
        "review first",
        "diseased slides at or above the threshold",
        "healthy slides below the threshold",
    ),
    (
        "low_priority",
        "low priority",
        "diseased slides that are not of low priority",
        "healthy slides of low priority",
    ),
)


def figures_of(slides: Sequence[MeasuredSlide], decision: float, low: float) -> tuple[Figure, ...]:
    """AUROC, sensitivity and specificity at both thresholds, and the Brier score, with intervals by patient.

    Args:
        slides: at least one.
        decision: threshold of *review first*, a probability.
        low: threshold below which a slide has low priority, a probability.
    """
    probabilities, labels, patients = _columns(slides)
    ill = np.asarray(labels) == 1
    general: list[Figure] = []
    found: list[Figure] = []
    for threshold, (key, name, of_diseased, of_healthy) in zip((decision, low), _AT_THRESHOLD, strict=True):
        metrics = bag_metrics(probabilities, labels, threshold)
        figure = partial(_figure, metrics, bag_intervals(metrics, probabilities, labels, patients))
        above = np.asarray(probabilities) >= threshold
        found += [
            figure("sensitivity", f"sensitivity_{key}", f"sensitivity, {name}", of_diseased, above[ill]),
            figure("specificity", f"specificity_{key}", f"specificity, {name}", of_healthy, ~above[~ill]),
        ]
        # Neither depends on the threshold.
        general = [
            figure("auroc", "auroc", "AUROC", "order of the slides: 1 is best, 0.5 is chance"),
            figure("brier", "brier", "Brier score", "error of the probability: 0 is best, 0.25 is uninformative"),
        ]
    return (*found, *general)


def _figure(
    metrics: BagMetrics, bounds: Bounds, field: str, key: str, name: str, meaning: str, hits: np.ndarray | None = None
) -> Figure:
    """The figure ``field`` of `BagMetrics`. ``hits`` (n,): whether the model is right, of each slide that counts."""
    reach = bounds.get(field)
    return Figure(
        key,
        name,
        meaning,
        getattr(metrics, field),
        (reach["low"], reach["high"]) if reach else None,
        metrics.undefined.get(field, ""),
        0 if hits is None else int(hits.sum()),
        0 if hits is None else hits.size,
    )


def calls_by_label(slides: Sequence[MeasuredSlide]) -> dict[int, dict[Call, int]]:
    """The number of slides of each call, for label 1 and label 0."""
    calls = (Call.REVIEW_FIRST, Call.REVIEW, Call.LOW_PRIORITY)
    return {
        label: {call: sum(one.label == label and one.call is call for one in slides) for call in calls}
        for label in (1, 0)
    }


def local_thresholds(slides: Sequence[MeasuredSlide], sensitivity_wanted: float) -> LocalThresholds | None:
    """Thresholds as fit-mil would choose them on these slides; None if they have one label only."""
    probabilities, labels, _ = _columns(slides)
    if len(set(labels)) < 2:
        return None
    p, y = np.asarray(probabilities), np.asarray(labels)
    decision = steady_f1_threshold(p, y, _SEED)
    low = min(sensitivity_threshold(p, y, sensitivity_wanted), decision)
    above = [p >= threshold for threshold in (decision, low)]
    return LocalThresholds(
        decision,
        low,
        sensitivity_wanted,
        (float(above[0][y == 1].mean()), float(above[1][y == 1].mean())),
        (float((~above[0])[y == 0].mean()), float((~above[1])[y == 0].mean())),
    )


def too_few(slides: Sequence[MeasuredSlide]) -> Weakness | None:
    """The warning that the slides are too few for a firm statement; None if they are enough."""
    n_diseased = sum(one.label for one in slides)
    if len(slides) >= MIN_SLIDES and min(n_diseased, len(slides) - n_diseased) >= MIN_OF_A_LABEL:
        return None
    return Weakness(
        "FEW SLIDES",
        f"{len(slides)} slides, {n_diseased} of them diseased. With fewer than {MIN_SLIDES} slides, or fewer than "
        f"{MIN_OF_A_LABEL} of a label, trust no figure beyond its interval.",
    )


def _columns(slides: Sequence[MeasuredSlide]) -> tuple[list[float], list[int], list[str]]:
    return [s.probability for s in slides], [s.label for s in slides], [s.patient_id for s in slides]
