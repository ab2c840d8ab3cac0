"""The record of one evaluation, evaluate.json, and the points of its curves.

The record holds the figures of each test bag. Tables, intervals and paired differences therefore need neither bags nor
models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, model_validator

from cytomil.bags.manifest import Manifest, fingerprint, patient_key, witness_rate_of
from cytomil.cards import Card, Count, Flag, Fraction, Number, Text, now, versions
from cytomil.encoders.bundle import InitialWeightsCard, TrainingData
from cytomil.evaluation.cell_labels import CellLabels
from cytomil.evaluation.config import EvaluateConfig
from cytomil.evaluation.control import Control, RedrawnMetrics
from cytomil.evaluation.intervals import Bounds
from cytomil.evaluation.metrics import (
    BagMetrics,
    InstanceMetrics,
    ScoredBag,
    bags_with_witness,
    checked_probabilities,
    expected_recall,
    instance_auroc,
    n_in_fraction,
    recall_at_fraction,
)
from cytomil.files import sha256_of_json

if TYPE_CHECKING:
    from cytomil.mil.triage_model import TriageModel


# The first tenth is ten times finer, because early recall matters most to a reviewer with little time.
FRACTIONS_REVIEWED = tuple(step / 1000 for step in range(100)) + tuple(step / 100 for step in range(10, 101))


def roc_curve_points(probabilities: ArrayLike, labels: ArrayLike) -> list[dict[str, float]]:
    """Corners of the ROC curve, from (0, 0) to (1, 1). No rows if the bags are of one class.

    Args:
        probabilities: of being positive, shape (B,), each in 0..1.
        labels: shape (B,), 1 positive and 0 negative.

    Returns:
        Rows with `fpr` and `tpr`, both fractions in 0..1 in ascending order.

    Raises:
        ValueError: the lengths differ, a probability is outside 0..1, or a label is neither 0 nor 1.
    """
    from sklearn.metrics import roc_curve

    checked, positive = checked_probabilities(probabilities, labels)
    if positive.all() or not positive.any():
        return []
    fpr, tpr, _ = roc_curve(positive, checked)
    return [{"fpr": float(x), "tpr": float(y)} for x, y in zip(fpr, tpr, strict=True)]


def pr_curve_points(probabilities: ArrayLike, labels: ArrayLike) -> list[dict[str, float]]:
    """Points of the precision-recall curve in order of recall. No rows if the bags are of one class.

    The first row, recall 0 at precision 1, is a convention of scikit-learn and not a measurement. Between two rows, the
    curve is a step at the precision of the later row. The area under the steps is the average precision.

    Args:
        probabilities: of being positive, shape (B,), each in 0..1.
        labels: shape (B,), 1 positive and 0 negative.

    Returns:
        Rows with `recall` and `precision`, both fractions in 0..1.

    Raises:
        ValueError: as `roc_curve_points`.
    """
    from sklearn.metrics import precision_recall_curve

    checked, positive = checked_probabilities(probabilities, labels)
    if positive.all() or not positive.any():
        return []
    precision, recall, _ = precision_recall_curve(positive, checked)
    pairs = zip(recall[::-1], precision[::-1], strict=True)
    return [{"recall": float(x), "precision": float(y)} for x, y in pairs]


def recall_by_k_points(bags: Sequence[ScoredBag]) -> list[dict[str, float]]:
    """Mean recall of witnesses by the fraction of each bag that is reviewed. No rows without a usable bag.

    Bags are chosen as in `instance_metrics`, and cells are counted as in `recall_at_fraction`. The rows at 1, 5, 10 and 40 %
    therefore equal those figures.

    Args:
        bags: per bag the attention scores and the instance labels (1 abnormal, 0 normal, -1 unknown), each (N,).

    Returns:
        Rows with `fraction_reviewed` (0 to 1, in steps of 0.1 % up to 10 % and of 1 % above), `recall`, and `random`, the
        expected recall of a random order. It lies slightly above the diagonal, because only whole instances are reviewed.

    Raises:
        ValueError: in a bag, the lengths differ, a score is not finite, or a label is not 1, 0 or -1.
    """
    usable, _ = bags_with_witness(bags)
    if not usable:
        return []
    recalls, randoms = [], []
    for scores, witness in usable:
        counts = [n_in_fraction(witness.size, fraction) for fraction in FRACTIONS_REVIEWED]
        recalls.append(expected_recall(scores, witness, counts))
        randoms.append(np.asarray(counts) / witness.size)
    columns = zip(FRACTIONS_REVIEWED, np.mean(recalls, axis=0), np.mean(randoms, axis=0), strict=True)
    return [
        {"fraction_reviewed": fraction, "recall": float(mean), "random": float(luck)}
        for fraction, mean, luck in columns
    ]


SCHEMA = "cytomil.evaluation/1"
RECORD_NAME = "evaluate.json"
_ENCODER_KEYS = ("collapsed", "collapse_reason", "effective_rank", "nt_xent_margin", "start_weights", "caveats")
_CURVE_FRACTIONS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Prediction:
    """One evaluated bag.

    ``instance_labels`` is None if they are not known. If ``is_part_labelled``, cells of label -1 do not count.
    """

    bag_id: str
    patient_id: str
    label: int
    probability: float
    scores: np.ndarray
    instance_labels: np.ndarray | None
    is_part_labelled: bool = False

    @property
    def scored(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Scores and instance labels of a positive bag for `instance_metrics`; None if negative or unknown."""
        if self.label == 0 or self.instance_labels is None:
            return None
        counts = self.instance_labels >= 0 if self.is_part_labelled else slice(None)
        return self.scores[counts], self.instance_labels[counts]


class RecordedBag(Card):
    """The figures of one test bag; None if a figure is not defined.

    ``patient_key`` stands for the patient (`cytomil.bags.manifest.patient_key`). Older records have ``patient_id`` instead.
    """

    bag_id: Text
    patient_id: Text = ""
    patient_key: Text = ""
    label: Literal[0, 1]
    probability: Fraction
    called_positive: Flag
    n_instances: Count = 0
    recall_at_5pct: Fraction | None = None
    recall_at_40pct: Fraction | None = None
    auroc: Fraction | None = None


class RedrawnBagFigures(Card):
    """The fields of `BagMetrics` on redrawn bags that the tables use."""

    auroc: Fraction
    f1: Fraction
    threshold: Fraction | None = None


class RecordedRedrawn(Card):
    """The fields of `RedrawnMetrics` that the tables use. Older records have no probabilities and labels of bags."""

    bag: RedrawnBagFigures
    best_f1: Fraction
    probabilities: tuple[Fraction, ...] = ()
    labels: tuple[Literal[0, 1], ...] = ()

    @model_validator(mode="after")
    def _fit(self) -> RecordedRedrawn:
        if len(self.probabilities) != len(self.labels):
            raise ValueError("'probabilities' and 'labels' should have the same length")
        if self.probabilities and self.bag.threshold is None:
            raise ValueError("'bag' should have a threshold")
        return self


class RecordedMetrics(Card):
    """metrics.json. The tables use only the redrawn bags, because the rest follows from each bag's figures."""

    redrawn: RecordedRedrawn | None = None


class RecordedAggregator(Card):
    """The aggregator of the evaluated model."""

    name: Text


class RecordedEncoder(Card):
    """The fields of encoder.json that evaluate.json repeats."""

    collapsed: Flag = False
    effective_rank: Number | None = None
    nt_xent_margin: Number | None = None
    start_weights: InitialWeightsCard | None = None
    settings: dict[str, Any] = Field(default_factory=dict)


class EvaluationRecord(Card):
    """evaluate.json, as the tables use it. Keys for human readers are kept and not checked.

    ``judge`` is the aggregator's name, ``best other`` or ``own``. ``witness_rate`` is None if bags differ or it is unknown.
    ``recall_by_share``: fraction of cells reviewed → fraction of witnesses found.
    """

    name: Text
    judge: Text
    seed: Count
    witness_rate: Fraction | None
    bags_fingerprint: Text
    metrics: RecordedMetrics
    bags: tuple[RecordedBag, ...]
    encoder: RecordedEncoder
    aggregator: RecordedAggregator
    uses_instance_labels: Flag = False
    recall_by_share: dict[float, Fraction] = Field(default_factory=dict)
    data: TrainingData | None = None
    versions: dict[str, Text] = Field(default_factory=dict)


def name_of(encoder_settings: dict[str, Any]) -> str:
    """The name of a run's row in tables, from the settings of its encoder.

    It holds the method and, for slam-ags, objective, surgery and rescaling if they differ from the paper. The architecture
    follows if it is not resnet18, then the initial weights, if any.
    """
    method = str(encoder_settings.get("method", "unknown"))
    arch, weights = str(encoder_settings.get("arch", "resnet18")), str(encoder_settings.get("weights") or "none")
    named = "-".join([method, *_non_default_options(encoder_settings)]) if method == "slam-ags" else method
    stem = "" if weights == "none" else Path(weights).stem
    parts = (named, arch if arch not in ("resnet18", "auto") else "", stem)
    return " ".join(part for part in parts if part)


def _non_default_options(settings: dict[str, Any]) -> list[str]:
    # Encoders of earlier versions have the options of the method among the other settings.
    options = settings.get("options")
    own = options.get("slam-ags") if isinstance(options, dict) else None
    settings = settings | (own if isinstance(own, dict) else {})
    stable = settings.get("objective", "paper") == "stable"
    usual = "priority" if stable else "adaptive"
    surgery = str(settings.get("surgery") or usual)
    if surgery == "adaptive":
        surgery = str(settings.get("rescale", "paper"))
    return ["stable"] * stable + [surgery] * (surgery not in ("paper", usual))


def make_record(
    settings: EvaluateConfig,
    model: TriageModel,
    manifest: Manifest,
    predictions: Sequence[Prediction],
    bag: BagMetrics,
    instance: InstanceMetrics,
    intervals: dict[str, Bounds],
    redrawn: RedrawnMetrics | None = None,
    control: Control | None = None,
    given: CellLabels | None = None,
) -> dict[str, Any]:
    """The content of evaluate.json. Fractions are 0 to 1. A figure that is not defined is None."""
    card, plain = model.encoder.card, model.encoder.card.to_json()
    fitted = model.card.to_json()
    scored = [prediction.scored for prediction in predictions if prediction.scored is not None]
    recall = {row["fraction_reviewed"]: row["recall"] for row in recall_by_k_points(scored)}
    metrics = {
        "bag": bag.to_dict(),
        "instance": instance.to_dict(),
        "intervals": intervals,
        "collapsed": model.card.collapsed,
        "uses_instance_labels": card.uses_instance_labels,
    }
    if redrawn:
        metrics["redrawn"] = redrawn.to_dict()
    if control:
        metrics["control"] = control.to_dict()
    bags_fingerprint = fingerprint(manifest.rows)
    if given:
        metrics["labelled_cells"] = {
            "n": sum(len(labels) for _, labels in scored),
            "n_abnormal": sum(int(labels.sum()) for _, labels in scored),
            "sha256": given.sha256,
        }
        # Metrics on other cells must not be compared with these.
        bags_fingerprint = sha256_of_json([bags_fingerprint, given.sha256])
    return {
        "schema": SCHEMA,
        "name": settings.name or name_of(card.settings),
        "method": card.method,
        "uses_instance_labels": card.uses_instance_labels,
        "judge": model.card.aggregator.name,
        "aggregator": fitted["aggregator"],
        "seed": card.settings.get("seed", 0),
        "witness_rate": witness_rate_of(manifest),
        "bags_fingerprint": bags_fingerprint,
        "metrics": metrics,
        "recall_by_share": {str(fraction): recall[fraction] for fraction in _CURVE_FRACTIONS if fraction in recall},
        "bags": [_bag(prediction, bag.threshold) for prediction in predictions],
        "held_out": {key: fitted["held_out"][key] for key in ("auroc", "f1", "log_loss")},
        "encoder_sha256": model.encoder.sha256,
        "encoder": {key: plain.get(key) for key in _ENCODER_KEYS} | {"settings": card.settings},
        "data": {key: value for key, value in plain.get("data", {}).items() if key != "fitted_to"},
        "fit_mil_settings": model.card.settings,
        "settings": settings.model_dump(mode="json"),
        "versions": versions(),
        "made": now(),
    }


def _bag(prediction: Prediction, threshold: float) -> dict[str, Any]:
    usable = bags_with_witness([prediction.scored] if prediction.scored else [])[0]
    figures: dict[str, float | None] = dict.fromkeys(("recall_at_5pct", "recall_at_40pct", "auroc"))
    for bag in usable:
        figures = {
            "recall_at_5pct": recall_at_fraction(*bag, 0.05),
            "recall_at_40pct": recall_at_fraction(*bag, 0.40),
            "auroc": instance_auroc(*bag),
        }
    return {
        "bag_id": prediction.bag_id,
        "patient_key": patient_key(prediction.patient_id),
        "label": prediction.label,
        "probability": prediction.probability,
        "called_positive": prediction.probability >= threshold,
        "n_instances": len(prediction.scores),
        **({"n_labelled": len(prediction.scored[1])} if prediction.is_part_labelled and prediction.scored else {}),
        **figures,
    }
