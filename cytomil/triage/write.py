"""The worklist on disk: triage.csv, triage.json, report.html, and the audit log of rank."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cytomil import __version__
from cytomil.chained_log import ChainedEntry, ChainedLog
from cytomil.errors import AuditLogError
from cytomil.files import sha256_of_file, write_bytes, write_json_card
from cytomil.tables import csv_text
from cytomil.text import ENCODING
from cytomil.triage.report import pictures_folder, write_report, write_summaries
from cytomil.triage.worklist import PatientSlides, SlideResult, Worklist

NAME = "audit.jsonl"


class AuditEntry(ChainedEntry):
    """One line: of a run if ``slide`` is empty, else of a slide in that run.

    Args:
        model_sha256: of the triage model's card.
        cytomil: the version.
        n_slides: number of slides that the run found.
        slide: the slide's name in the worklist.
        slide_sha256: of the slide's content; empty if it was not assessed.
        call: its call in the worklist.
        probability: the model's probability; None if it was not assessed.
    """

    model_sha256: str
    cytomil: str = ""
    n_slides: int = 0
    slide: str = ""
    slide_sha256: str = ""
    call: str = ""
    probability: float | None = None


class AuditLog(ChainedLog[AuditEntry]):
    """The log in ``folder``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / NAME, AuditEntry, AuditLogError)

    def begin(self, model_sha256: str, n_slides: int) -> None:
        """Append the line of a run. Raises `AuditLogError` if it cannot be written."""
        self.append_fields({"model_sha256": model_sha256, "cytomil": __version__, "n_slides": n_slides})

    def add(self, model_sha256: str, result: SlideResult) -> None:
        """Append the line of a slide. Raises `AuditLogError` if it cannot be written."""
        self.append_fields(
            {
                "model_sha256": model_sha256,
                "slide": result.slide,
                "slide_sha256": result.sha256,
                "call": result.call.value,
                "probability": result.probability,
            }
        )


SCHEMA = "cytomil.triage/1"
WORKLIST_NAME = "triage.json"
CSV_NAME = "triage.csv"
REPORT_NAME = "report.html"
FILES_KEY = "files_sha256"
"""Key of triage.json: the hash of each file that was written with it."""
_MAX_BYTES_IN_ONE_FILE = 55_000_000  # of pictures; the page around them adds a tenth
_SECONDS_BETWEEN = 5.0
CSV_COLUMNS = (
    "rank",
    "slide",
    "call",
    "probability",
    "n_cells",
    "n_unreadable",
    "look_at",
    "reason",
    "cautions",
    "path",
)
PATIENT_COLUMNS = ("patient", "accession", "same_patient")
"""Further columns, if the user gave patients."""
_FROM_OUTSIDE = ("slide", "look_at", "reason", "cautions", "path", "patient", "accession")


def write_worklist(worklist: Worklist, out: Path, split_images: bool = False, summaries: bool = False) -> Path:
    """Write the three files into ``out``; returns the report's path.

    With ``split_images``, or if one file would be too large to open, the pictures are beside the report. With
    ``summaries``, each slide also has a separate page; see `cytomil.triage.report`.
    """
    if summaries:
        worklist = write_summaries(worklist, out)
    columns = (*CSV_COLUMNS, *PATIENT_COLUMNS) if worklist.patients else CSV_COLUMNS
    write_bytes(out / CSV_NAME, csv_text(columns, _rows(worklist), _FROM_OUTSIDE).encode(ENCODING))
    split = split_images or _bytes_of_pictures(worklist) > _MAX_BYTES_IN_ONE_FILE
    write_report(worklist, out / REPORT_NAME, split_images=split)
    written = [out / CSV_NAME, out / REPORT_NAME, *(pictures_folder(out / REPORT_NAME).glob("*") if split else ())]
    written += [out / file for slide in worklist.slides for file in slide.files.values()]
    hashes = {file.relative_to(out).as_posix(): sha256_of_file(file) for file in sorted(set(written))}
    write_json_card(out / WORKLIST_NAME, to_document(worklist) | {FILES_KEY: hashes})
    return out / REPORT_NAME


class GrowingReport:
    """Writes the worklist while slides are still being read: after the first one, then from time to time.

    Writing takes at most a twentieth of the time, whatever the number of slides.
    """

    def __init__(self, out: Path, split_images: bool) -> None:
        self._out, self._split_images = out, split_images
        self._next = 0.0

    def add(self, worklist: Worklist) -> None:
        """Write ``worklist``, if enough time has passed."""
        begun = time.monotonic()
        if begun < self._next:
            return
        write_worklist(worklist, self._out, self._split_images)
        ended = time.monotonic()
        self._next = ended + max(_SECONDS_BETWEEN, 20 * (ended - begun))


def _bytes_of_pictures(worklist: Worklist) -> int:
    """The size of the pictures inside a page, in bytes: base64 makes four characters of three bytes."""
    pictures = (
        picture
        for slide in worklist.slides
        for picture in (
            slide.thumbnail,
            slide.qc_picture,
            *(one for cell in slide.key_instances for one in (cell.image, cell.context)),
        )
    )
    return sum(len(picture) for picture in pictures if picture) * 4 // 3


def to_document(worklist: Worklist) -> dict[str, Any]:
    """The worklist as one JSON document, without pictures; triage.schema.json describes it."""
    return {
        "schema": SCHEMA,
        "notice": "Decision support, not a diagnosis.",
        "folder": worklist.folder,
        "created": worklist.created,
        "all_assessed": worklist.all_assessed,
        "n_unread": worklist.unread,
        "thresholds": {
            "review_first": worklist.threshold,
            "review_first_range": worklist.threshold_range,
            "low_priority_below": worklist.low_threshold,
            "low_priority_below_range": worklist.low_threshold_range,
        },
        "model_weaknesses": [{"title": one.title, "text": one.text} for one in worklist.weaknesses],
        "slides": [
            _slide(rank, slide) | (_patient(worklist, slide) if worklist.patients else {})
            for rank, slide in enumerate(worklist.slides, start=1)
        ],
        **({"patients": [_patient_slides(one) for one in worklist.patients]} if worklist.patients else {}),
        "model_card": worklist.model_card,
        "settings": worklist.settings,
        "versions": worklist.versions,
    }


def _slide(rank: int, slide: SlideResult) -> dict[str, Any]:
    return {
        "rank": rank,
        "slide": slide.slide,
        "path": slide.path,
        "call": slide.call.value,
        "probability": slide.probability,
        "is_unlike": slide.is_unlike,
        "novelty_p": slide.novelty_p,
        "reason": slide.reason,
        "cautions": list(slide.cautions),
        "n_cells": slide.n_instances,
        "n_unreadable": slide.n_unreadable,
        "n_at_edge": slide.n_at_edge,
        "mpp": slide.mpp,
        "mpp_given": slide.mpp_given,
        "sha256": slide.sha256,
        "look_at": slide.look_at,
        "key_instances": [
            {
                "instance_id": cell.instance_id,
                "score": cell.score,
                "x_px": cell.x_px,
                "y_px": cell.y_px,
                "x_um": cell.x_um,
                "y_um": cell.y_um,
                "why": cell.why,
            }
            for cell in slide.key_instances
        ],
        **({"to_teach": [asdict(cell) for cell in slide.to_teach]} if slide.to_teach else {}),
        "files": slide.files,
    }


def _patient(worklist: Worklist, slide: SlideResult) -> dict[str, str]:
    """The columns of the slide's patient, empty if it is not known."""
    patient = worklist.patient_of(slide.slide)
    if patient is None:
        return dict.fromkeys(PATIENT_COLUMNS, "")
    return {"patient": patient.patient, "accession": patient.accessions[slide.slide], "same_patient": patient.said}


def _patient_slides(patient: PatientSlides) -> dict[str, Any]:
    return {
        "patient": patient.patient,
        "call": patient.call.value,
        "n_not_assessed": patient.n_not_assessed,
        "slides": list(patient.slides),
    }


def _rows(worklist: Worklist) -> Iterator[dict[str, Any]]:
    for rank, slide in enumerate(worklist.slides, start=1):
        probability = "" if slide.probability is None or slide.is_unlike else f"{slide.probability:.4f}"
        yield {
            "rank": rank,
            "slide": slide.slide,
            "call": slide.call.value,
            "probability": probability,
            "n_cells": slide.n_instances,
            "n_unreadable": slide.n_unreadable,
            "look_at": slide.look_at,
            "reason": slide.reason,
            "cautions": "; ".join(slide.cautions),
            "path": slide.path,
            **_patient(worklist, slide),
        }
