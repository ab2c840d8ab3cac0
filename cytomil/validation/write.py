"""A validation on disk: validation.json for programs, validation.html to print and sign, and the slides' worklist."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from cytomil.bags.fitted import patient_key
from cytomil.evaluation.plots import plot_calibration, plot_roc, save_png
from cytomil.files import sha256_of_file, write_json_card, write_text
from cytomil.triage.write import write_worklist
from cytomil.validation.figures import calls_by_label
from cytomil.validation.page import NOTICE, render_page
from cytomil.validation.validate import Validation

SCHEMA = "cytomil.validation/1"
RECORD_NAME = "validation.json"
PAGE_NAME = "validation.html"
FILES_KEY = "files_sha256"
"""Key of validation.json: the hash of each file that was written with it."""
_SIZE_INCHES = (4.8, 2.8)  # two pictures stand side by side on a page, so that their text must be large


def write_validation(validation: Validation, out: Path) -> Path:
    """Write everything into ``out``; returns the path of the page."""
    write_worklist(validation.worklist, out)
    auroc = next(one.value for one in validation.figures if one.key == "auroc")
    pictures = {
        "calibration": plot_calibration(validation.calibration),
        "roc": plot_roc(validation.roc, auroc),
    }
    labels = {
        "calibration": ("Probability given by the model", "Share that is diseased"),
        "roc": ("False alarms: 1 − specificity", "Sensitivity"),
    }
    for name, figure in pictures.items():
        figure.set_size_inches(*_SIZE_INCHES)
        figure.axes[0].set(title="", xlabel=labels[name][0], ylabel=labels[name][1])
        figure.axes[0].set_title("", loc="left")
        save_png(figure, out / "plots" / f"{name}.png")
    written = [out / "plots" / f"{name}.png" for name in pictures]
    page = out / PAGE_NAME
    write_text(
        page, render_page(validation, {name: file.read_bytes() for name, file in zip(pictures, written, strict=True)})
    )
    hashes = {file.relative_to(out).as_posix(): sha256_of_file(file) for file in (page, *written)}
    write_json_card(out / RECORD_NAME, to_document(validation) | {FILES_KEY: hashes})
    return page


def to_document(validation: Validation) -> dict[str, Any]:
    """The validation as one JSON document, without pictures and without names of patients."""
    worklist, card = validation.worklist, validation.card
    return {
        "schema": SCHEMA,
        "notice": NOTICE,
        "created": worklist.created,
        "model": validation.model,
        "model_card": worklist.model_card,
        "slides_folder": worklist.folder,
        "labels": validation.labels,
        "labels_sha256": validation.labels_sha256,
        "n_slides": len(validation.slides),
        "n_diseased": validation.n_diseased,
        "n_patients": {"diseased": validation.patients[0], "healthy": validation.patients[1]},
        "n_unlike": validation.n_unlike,
        "n_uncompared": validation.uncompared,
        "thresholds": {"review_first": card.thresholds.decision, "low_priority_below": card.thresholds.low},
        "figures": {
            one.key: {
                "value": one.value,
                "interval": one.interval,
                "reason": one.reason,
                "hits": one.hits,
                "n": one.n,
            }
            for one in validation.figures
        },
        "calls": {
            ("healthy", "diseased")[label]: {call.value: n for call, n in counts.items()}
            for label, counts in calls_by_label(validation.slides).items()
        },
        "calibration": validation.calibration,
        "roc": validation.roc,
        "proposed_thresholds": asdict(validation.proposed) if validation.proposed else None,
        "warnings": [asdict(one) for one in validation.warnings],
        "slides": [
            {key: value for key, value in asdict(one).items() if key != "patient_id"}
            | {"patient_key": patient_key(one.patient_id)}
            for one in validation.slides
        ],
        "not_measured": [{"which": one.where, "why": one.reason} for one in validation.left_out],
        "settings": worklist.settings,
        "versions": worklist.versions,
    }
