"""A validation on disk: validation.json, the page to sign, and the slides' worklist."""

from __future__ import annotations

import base64
import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cytomil.bags.manifest import patient_key
from cytomil.evaluation.plots import plot_calibration, plot_roc, save_png
from cytomil.files import sha256_of_file, write_json_card, write_text
from cytomil.mil.triage_model import auroc_text
from cytomil.progress import Problem
from cytomil.triage.write import write_worklist
from cytomil.validation.figures import Figure, calls_by_label
from cytomil.validation.validate import Validation

NOTICE = "Decision support, not a diagnosis."
_MAX_REASONS = 4  # more would not fit on one page
_MAX_LETTERS = 70
_LETTERS_OF_A_NAME = 30


def render_page(validation: Validation, pictures: Mapping[str, bytes]) -> str:
    """The validation as one HTML document.

    Args:
        validation: what was measured.
        pictures: PNG files of "roc" and "calibration".
    """
    style, _, _ = _loader().get_source(_environment(), "validation.css")
    style = "\n".join(style.splitlines())  # with the line ends that a browser hashes
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    lines = _by_reason(validation.left_out)
    page = (
        _environment()
        .get_template("validation.html.j2")
        .render(
            validation=validation,
            card=validation.card,
            worklist=validation.worklist,
            held_out=auroc_text(validation.card.held_out),
            calls=calls_by_label(validation.slides),
            shown=[line for line, _ in lines[:_MAX_REASONS]],
            more=sum(n for _, n in lines[_MAX_REASONS:]),
            pictures={name: base64.b64encode(picture).decode() for name, picture in pictures.items()},
            policy=f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
            style=Markup(style),
            notice=NOTICE,
            version=validation.worklist.versions["cytomil"].partition("+")[0],
        )
    )
    # A file name that is not UTF-8 arrives as lone surrogates, which no file can hold.
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def shown_value(figure: Figure) -> str:
    """A figure with its interval, such as ``0.92 [0.65, 0.99]``."""
    if figure.value is None:
        return "–"
    return f"{figure.value:.2f}" + (f" [{figure.interval[0]:.2f}, {figure.interval[1]:.2f}]" if figure.interval else "")


def shown_slides(figure: Figure) -> str:
    """The slides that a figure counts, such as ``11 of 12``; "" if it counts none."""
    return f"{figure.hits} of {figure.n}" if figure.n else ""


def _by_reason(left_out: Sequence[Problem]) -> list[tuple[str, int]]:
    """A line for each reason, with the first of its slides, and how many slides it applies to; frequent reasons first."""
    names: dict[str, list[str]] = defaultdict(list)
    for one in left_out:
        names[one.reason].append(one.where)
    lines = sorted(names.items(), key=lambda item: -len(item[1]))
    return [
        (
            f"{_shortened(first, _LETTERS_OF_A_NAME)}{f' and {len(more)} more' if more else ''}: {_shortened(reason)}",
            1 + len(more),
        )
        for reason, (first, *more) in lines
    ]


def _shortened(text: str, letters: int = _MAX_LETTERS) -> str:
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


@cache
def _loader() -> PackageLoader:
    return PackageLoader("cytomil.validation", "templates")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=_loader(), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"shown": shown_value, "slides": shown_slides, "short": _shortened}
    return environment


SCHEMA = "cytomil.validation/1"
RECORD_NAME = "validation.json"
PAGE_NAME = "validation.html"
FILES_KEY = "files_sha256"
"""Key of validation.json: the hash of each file that was written with it."""
_SIZE_INCHES = (4.8, 2.8)  # two pictures are side by side on a page, so their text must be large


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
