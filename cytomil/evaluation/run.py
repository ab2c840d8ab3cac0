"""evaluate: figures, predictions and curves on bags that the model was not fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cytomil.bags.instance_labels import read_instance_labels
from cytomil.bags.manifest import Fitted, Manifest, open_listed, read_manifest
from cytomil.errors import CytomilError, FeatureFileError, SettingsError, TriageModelError
from cytomil.evaluation.cell_labels import CellLabels, read_cell_labels
from cytomil.evaluation.config import EvaluateConfig
from cytomil.evaluation.control import (
    Control,
    RedrawnMetrics,
    permuted_labels,
    read_sites,
    redrawn_metrics,
    without_witnesses,
)
from cytomil.evaluation.intervals import Bounds, bag_intervals, calibration_points, instance_intervals
from cytomil.evaluation.metrics import BagMetrics, InstanceMetrics, bag_metrics, instance_metrics
from cytomil.evaluation.plots import plot_calibration, plot_pr, plot_recall_by_k, plot_roc, plot_training, save_png
from cytomil.evaluation.record import (
    RECORD_NAME,
    Prediction,
    make_record,
    pr_curve_points,
    recall_by_k_points,
    roc_curve_points,
)
from cytomil.features.cache import Features
from cytomil.features.config import Split
from cytomil.features.embed import preparation_sha256
from cytomil.features.index import IndexRow, read_index, require_agreement
from cytomil.files import sha256_of_file, write_json, write_json_card, write_text
from cytomil.mil.config import FitMilConfig
from cytomil.mil.fit import draw_of, training_bags
from cytomil.mil.triage_model import TriageModel, load_triage_model
from cytomil.progress import Listener, Problem
from cytomil.tables import csv_text

_PLOTS = (
    *(f"{name}.{kind}" for name in ("roc", "pr", "calibration", "recall_by_k") for kind in ("csv", "png")),
    "training.png",
)


@dataclass(frozen=True)
class Measured:
    """Predictions and figures of a model on one split. ``record`` is the content of evaluate.json."""

    model: TriageModel
    predictions: tuple[Prediction, ...]
    bag: BagMetrics
    instance: InstanceMetrics
    record: dict[str, Any]
    problems: tuple[Problem, ...]
    redrawn: RedrawnMetrics | None
    control: Control | None


@dataclass(frozen=True)
class Evaluated:
    """The result of evaluate.

    ``problems`` lists bags whose instance labels could not be read or used. ``intervals`` holds the 95 % intervals of ``bag``
    and ``instance`` under these names. ``labelled_cells`` is the number of cells behind ``instance``, if labels of some cells
    were given: n, n_abnormal, and the SHA-256 of the file.
    """

    folder: Path
    bag: BagMetrics
    instance: InstanceMetrics
    intervals: dict[str, Bounds]
    collapsed: bool
    uses_instance_labels: bool
    problems: tuple[Problem, ...]
    redrawn: RedrawnMetrics | None
    control: Control | None
    labelled_cells: dict[str, Any] | None


def evaluate(settings: EvaluateConfig, listener: Listener) -> Evaluated:
    """Evaluate the triage model on the chosen split, and write metrics.json, predictions.csv and the curves.

    The control, if requested, uses all bags of the features folder and not only the chosen split.

    Raises `SettingsError`, `NotFoundError`, `TableError`, `FeatureFileError` or `TriageModelError`.
    """
    measured = measure(settings, listener)
    _write(settings.out, measured)
    metrics = measured.record["metrics"]
    return Evaluated(
        settings.out,
        measured.bag,
        measured.instance,
        metrics["intervals"],
        metrics["collapsed"],
        metrics["uses_instance_labels"],
        measured.problems,
        measured.redrawn,
        measured.control,
        metrics.get("labelled_cells"),
    )


def measure(settings: EvaluateConfig, listener: Listener) -> Measured:
    """Evaluate without writing files; see `evaluate`."""
    if (settings.permutations or settings.sites) and not settings.control:
        raise SettingsError("permutations and sites are for the control. Add --control.")
    if settings.sites and not settings.permutations:
        raise SettingsError("sites are for permuted labels. Add --permutations 10.")
    if settings.cells and (settings.redraw or (settings.control and not settings.permutations)):
        raise SettingsError(
            "--redraw and --control need the labels of all cells, but --cells labels only some. Remove one of these options, "
            "or add --permutations 10 to --control."
        )
    given = read_cell_labels(settings.cells) if settings.cells else None
    index = read_index(settings.features)
    require_agreement(index)
    opened = index.open(settings.split)
    model = load_triage_model(settings.model)
    _require_unseen(settings, model, [row for row, _ in opened])
    key = opened[0][1].key
    # Models of versions without engines have no engine in their card.
    fitted_with = (
        model.encoder.sha256,
        str(model.layer),
        preparation_sha256(model.layer, model.encoder.transform.sha256),
        model.card.engine or key.engine,
        str(model.orientations),
    )
    if (key.encoder_sha256, key.layer, key.transform_sha256, key.engine, key.orientations) != fitted_with:
        raise FeatureFileError(
            f"{settings.features} does not match {settings.model}: encoder, layer, engine, number of orientations or version "
            "of cytomil differ. Run `cytomil fit-mil` again."
        )
    for caveat in model.encoder.caveats:
        listener.note(caveat)
    manifest = read_manifest(settings.bags)
    problems = _unused(given, index.rows, opened, listener) if given else []
    if model.card.feedback is not None and settings.split != Split.TEST:
        listener.note(
            "the model learnt from readers' verdicts on cells of training bags: metrics of these cells are too optimistic"
        )
    predictions = []
    for row, features in listener.track(opened, "evaluating", unit="bags"):
        assessment = model.ensemble.assess_blocks(features.blocks())
        labels = _instance_labels(manifest, row.bag_id, features, problems, given)
        fields = (row.bag_id, row.patient_id, row.label, assessment.probability, assessment.scores, labels)
        predictions.append(Prediction(*fields, is_part_labelled=given is not None))
    threshold = model.card.thresholds.decision
    bag = bag_metrics([p.probability for p in predictions], [p.label for p in predictions], threshold)
    scored = [p.scored for p in predictions if p.scored is not None]
    instance = instance_metrics(scored, settings.k or None)
    columns = (
        [p.probability for p in predictions],
        [p.label for p in predictions],
        [p.patient_id for p in predictions],
    )
    intervals = {"bag": bag_intervals(bag, *columns), "instance": instance_intervals(scored, settings.k or None)}
    redrawn = _redraw(settings, model, [features for _, features in opened], predictions) if settings.redraw else None
    control = _control(settings, model, manifest, listener) if settings.control else None
    record = make_record(settings, model, manifest, predictions, bag, instance, intervals, redrawn, control, given)
    problems += control.problems if control else ()
    return Measured(model, tuple(predictions), bag, instance, record, tuple(problems), redrawn, control)


def _require_unseen(settings: EvaluateConfig, model: TriageModel, rows: Sequence[IndexRow]) -> None:
    """Raise `TriageModelError` if a test bag or its patient had a part in fitting the model or its encoder."""
    for what, bags in (("model", model.card.fitted_to), ("encoder", model.encoder.card.data.fitted_to)):
        fitted = Fitted(bags)
        for row in rows:
            if row.split == "test" and (seen := fitted.seen(row.bag_sha256, row.patient_id)):
                raise TriageModelError(
                    f"{settings.features}: bag '{row.bag_id}' is a test bag, but {seen} had a part in fitting the {what} in "
                    f"{settings.model}. Fit again without it, or measure on training bags with --split train."
                )


def _control(settings: EvaluateConfig, model: TriageModel, manifest: Manifest, listener: Listener) -> Control:
    try:
        fit_settings = FitMilConfig.model_validate(model.card.settings)
    except ValueError:
        raise TriageModelError(
            f"{settings.model} has settings that this version of cytomil does not support. Fit it again with "
            "`cytomil fit-mil`."
        ) from None
    opened = read_index(settings.features).open("all")
    bags = training_bags(opened, fit_settings, listener)
    if settings.permutations:
        site_of = read_sites(settings.sites) if settings.sites else {}
        if unknown := [row.bag_id for row, _ in opened if site_of and (row.patient_id or row.bag_id) not in site_of]:
            listener.note(
                f"{len(unknown)} of {len(opened)} bags have no site in {settings.sites}: they count as one site."
            )
        by_patient = {
            bag.patient: site_of.get(row.patient_id or row.bag_id, "")
            for bag, (row, _) in zip(bags, opened, strict=True)
        }
        return permuted_labels(bags, by_patient, settings.permutations, fit_settings, listener)
    ignored: list[Problem] = []

    def labels_of(i: int) -> np.ndarray | None:
        row, features = opened[i]
        labels = _instance_labels(manifest, row.bag_id, features, ignored)
        return None if labels is None else labels[draw_of(fit_settings).indices(row.bag_id, len(labels))]

    return without_witnesses(bags, labels_of, fit_settings, listener)


def _redraw(
    settings: EvaluateConfig, model: TriageModel, opened: Sequence[Features], predictions: Sequence[Prediction]
) -> RedrawnMetrics:
    known = [
        (f.load(), p.instance_labels) for f, p in zip(opened, predictions, strict=True) if p.instance_labels is not None
    ]
    if not {0, 1} <= {label for _, labels in known for label in labels.tolist()}:
        raise FeatureFileError(
            f"{settings.bags} has no known normal or no known abnormal cells in this split, so bags cannot be redrawn. "
            "Remove --redraw."
        )
    threshold = model.card.thresholds.decision
    call = partial(_probability, model)
    return redrawn_metrics(known, call, threshold, settings.redraw, settings.seed)


def _probability(model: TriageModel, values: np.ndarray) -> float:
    return model.ensemble.assess(values).probability


def _unused(
    given: CellLabels, rows: Sequence[IndexRow], opened: Sequence[tuple[IndexRow, Features]], listener: Listener
) -> list[Problem]:
    """Problems for labelled slides that match no bag. Slides of the other split get a note instead."""
    unmatched = given.without_bag(row.bag_id for row, _ in opened)
    unknown = given.without_bag(row.bag_id for row in rows)
    if others := [slide for slide in unmatched if slide not in unknown]:
        listener.note(f"labels of bags outside the evaluated split are not used: {', '.join(sorted(others))}")
    return [
        Problem(slide, f"no bag has this name: {n} label{'s' * (n != 1)} of {given.path} not used")
        for slide, n in unknown.items()
    ]


def _instance_labels(
    manifest: Manifest, bag_id: str, features: Features, problems: list[Problem], given: CellLabels | None = None
) -> np.ndarray | None:
    """The labels of a bag's cells in the order of ``features``, from ``given`` or else from the bag file."""
    row = next((row for row in manifest.rows if row.bag_id == bag_id), None)
    if row is None:
        problems.append(Problem(bag_id, f"is not in {manifest.folder}: no instance labels"))
        return None
    try:
        if row.sha256 != features.key.bag_sha256:
            raise FeatureFileError(
                f"{features.path} was not made from {manifest.file_of(row)}. Run `cytomil embed` again."
            )
        bag = open_listed(manifest, row)
        if given:
            labels = given.of_bag(bag, problems)
            label_of = {} if labels is None else dict(zip(bag.instance_ids, labels.tolist(), strict=True))
        else:
            label_of = read_instance_labels(manifest.file_of(row))
    except CytomilError as error:
        problems.append(Problem(bag_id, str(error)))
        return None
    return np.array([label_of[name] for name in features.instance_ids]) if label_of else None


def _write(out: Path, measured: Measured) -> None:
    predictions, bag, instance = measured.predictions, measured.bag, measured.instance
    labels, probabilities = [p.label for p in predictions], [p.probability for p in predictions]
    roc, pr, calibration, recall = (
        roc_curve_points(probabilities, labels),
        pr_curve_points(probabilities, labels),
        calibration_points(probabilities, labels),
        recall_by_k_points([p.scored for p in predictions if p.scored is not None]),
    )
    for name, rows, columns in (
        ("roc", roc, ("fpr", "tpr")),
        ("pr", pr, ("recall", "precision")),
        ("recall_by_k", recall, ("fraction_reviewed", "recall", "random")),
        ("calibration", calibration, ("probability", "positive", "low", "high", "n_bags")),
    ):
        write_text(out / "plots" / f"{name}.csv", csv_text(columns, rows))
    save_png(plot_roc(roc, bag.auroc), out / "plots" / "roc.png")
    save_png(plot_pr(pr, bag.auprc, float(np.mean(labels))), out / "plots" / "pr.png")
    save_png(plot_calibration(calibration), out / "plots" / "calibration.png")
    save_png(plot_recall_by_k(recall, instance.n_bags), out / "plots" / "recall_by_k.png")
    save_png(plot_training(measured.model.encoder.card.history), out / "plots" / "training.png")
    predicted = [
        {
            "bag_id": p.bag_id,
            "label": p.label,
            "probability": f"{p.probability:.6f}",
            "called_positive": int(p.probability >= bag.threshold),
            "n_instances": len(p.scores),
        }
        for p in predictions
    ]
    write_text(out / "predictions.csv", csv_text(tuple(predicted[0]), predicted, ("bag_id",)))
    write_json(out / "metrics.json", measured.record["metrics"])
    written = ("metrics.json", "predictions.csv", *(f"plots/{name}" for name in _PLOTS))
    files = {name: sha256_of_file(out / name) for name in written}
    write_json_card(out / RECORD_NAME, measured.record | {"files": files})
