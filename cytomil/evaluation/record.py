"""The record of one evaluation, evaluate.json: what tables, intervals and paired differences are made of, and no more.

It holds each test bag's own figures, so that a table needs neither the bags nor the models again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cytomil.bags.manifest import Manifest, fingerprint
from cytomil.evaluation.config import EvaluateConfig
from cytomil.evaluation.control import Control
from cytomil.evaluation.curves import recall_by_k_points
from cytomil.evaluation.intervals import Bounds
from cytomil.evaluation.metrics import BagMetrics, InstanceMetrics, bags_with_witness, instance_auroc, recall_at_share
from cytomil.evaluation.redrawn import RedrawnMetrics
from cytomil.provenance import now, versions

if TYPE_CHECKING:
    from cytomil.mil.triage_model import TriageModel

SCHEMA = "cytomil.evaluation/1"
RECORD_NAME = "evaluate.json"
_ENCODER_FACTS = ("collapsed", "collapse_reason", "effective_rank", "nt_xent_margin", "start_weights", "caveats")
_CURVE_SHARES = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Prediction:
    """One evaluated bag; ``instance_labels`` is None where the bags folder does not give them."""

    bag_id: str
    patient_id: str
    label: int
    probability: float
    scores: np.ndarray
    instance_labels: np.ndarray | None

    @property
    def scored(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Scores and instance labels of a positive bag, as `instance_metrics` takes them."""
        return None if self.label == 0 or self.instance_labels is None else (self.scores, self.instance_labels)


def name_of(encoder_settings: dict[str, Any]) -> str:
    """The row a run stands in, from its encoder's settings.

    The method; slam-ags's objective, and its surgery or how it rescales, where not as the paper; the architecture where
    not resnet18; the start weights, if any.
    """
    method = str(encoder_settings["method"])
    arch, weights = encoder_settings.get("arch", "resnet18"), encoder_settings.get("weights")
    named = "-".join([method, *_departures(encoder_settings)]) if method == "slam-ags" else method
    weights = None if weights == "none" else weights
    parts = (named, arch if arch not in ("resnet18", "auto") else "", Path(weights).stem if weights else "")
    return " ".join(part for part in parts if part)


def _departures(settings: dict[str, Any]) -> list[str]:
    # Encoders of earlier versions have these beside the other settings.
    settings = settings | settings.get("options", {}).get("slam-ags", {})
    stable = settings.get("objective", "paper") == "stable"
    usual = "priority" if stable else "adaptive"
    surgery = settings.get("surgery") or usual
    if surgery == "adaptive":
        surgery = settings.get("rescale", "paper")
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
) -> dict[str, Any]:
    """What evaluate.json holds. Shares are 0 to 1; a figure that is not defined is None."""
    card = model.encoder.card
    rates = {row.witness_rate for row in manifest.rows if row.label and row.witness_rate is not None}
    scored = [prediction.scored for prediction in predictions if prediction.scored is not None]
    recall = {row["share_reviewed"]: row["recall"] for row in recall_by_k_points(scored)}
    uses_instance_labels = bool(card.get("uses_instance_labels"))
    metrics = {
        "bag": bag.to_dict(),
        "instance": instance.to_dict(),
        "intervals": intervals,
        "collapsed": bool(model.card["collapsed"]),
        "uses_instance_labels": uses_instance_labels,
    }
    if redrawn:
        metrics["redrawn"] = redrawn.to_dict()
    if control:
        metrics["control"] = control.to_dict()
    return {
        "schema": SCHEMA,
        "name": settings.name or name_of(card["settings"]),
        "method": str(card["method"]),
        "uses_instance_labels": uses_instance_labels,
        "judge": model.card["aggregator"]["name"],
        "aggregator": model.card["aggregator"],
        "seed": card["settings"]["seed"],
        "witness_rate": rates.pop() if len(rates) == 1 else None,
        "bags_fingerprint": fingerprint(manifest.rows),
        "metrics": metrics,
        "recall_by_share": {str(share): recall[share] for share in _CURVE_SHARES if share in recall},
        "bags": [_bag(prediction, bag.threshold) for prediction in predictions],
        "held_out": {key: model.card["held_out"][key] for key in ("auroc", "f1", "log_loss")},
        "encoder_sha256": model.encoder.sha256,
        "encoder": {key: card.get(key) for key in _ENCODER_FACTS} | {"settings": card["settings"]},
        "data": card["data"],
        "fit_mil_settings": model.card["settings"],
        "settings": settings.model_dump(mode="json"),
        "versions": versions(),
        "made": now(),
    }


def _bag(prediction: Prediction, threshold: float) -> dict[str, Any]:
    usable = bags_with_witness([prediction.scored] if prediction.scored else [])[0]
    figures: dict[str, float | None] = dict.fromkeys(("recall_at_5pct", "recall_at_40pct", "auroc"))
    for bag in usable:
        figures = {
            "recall_at_5pct": recall_at_share(*bag, 0.05),
            "recall_at_40pct": recall_at_share(*bag, 0.40),
            "auroc": instance_auroc(*bag),
        }
    return {
        "bag_id": prediction.bag_id,
        "patient_id": prediction.patient_id,
        "label": prediction.label,
        "probability": prediction.probability,
        "called_positive": prediction.probability >= threshold,
        "n_instances": len(prediction.scores),
        **figures,
    }
