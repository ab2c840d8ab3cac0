"""The worklist on disk: triage.csv for a spreadsheet, triage.json for programs, report.html for a person."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from cytomil.files import write_json, write_text
from cytomil.triage.report import write_report
from cytomil.triage.worklist import SlideResult, Worklist

SCHEMA = "cytomil.triage/1"
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


def write_worklist(worklist: Worklist, out: Path) -> Path:
    """Write the three files into ``out``; returns the report's path."""
    write_text(out / "triage.csv", _csv(worklist))
    write_json(out / "triage.json", to_document(worklist))
    write_report(worklist, out / "report.html")
    return out / "report.html"


def to_document(worklist: Worklist) -> dict[str, Any]:
    """The worklist as one JSON document, without pictures."""
    return {
        "schema": SCHEMA,
        "notice": "Decision support, not a diagnosis.",
        "folder": worklist.folder,
        "created": worklist.created,
        "all_assessed": worklist.all_assessed,
        "thresholds": {"review_first": worklist.threshold, "low_priority_below": worklist.low_threshold},
        "slides": [_slide(rank, slide) for rank, slide in enumerate(worklist.slides, start=1)],
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
        "reason": slide.reason,
        "cautions": list(slide.cautions),
        "n_cells": slide.n_instances,
        "n_unreadable": slide.n_unreadable,
        "mpp": slide.mpp,
        "look_at": slide.look_at,
        "key_instances": [
            {"instance_id": cell.instance_id, "score": cell.score, "x_px": cell.x_px, "y_px": cell.y_px}
            for cell in slide.key_instances
        ],
    }


def _csv(worklist: Worklist) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for rank, slide in enumerate(worklist.slides, start=1):
        probability = "" if slide.probability is None else f"{slide.probability:.4f}"
        writer.writerow(
            (
                rank,
                slide.slide,
                slide.call.value,
                probability,
                slide.n_instances,
                slide.n_unreadable,
                slide.look_at,
                slide.reason,
                "; ".join(slide.cautions),
                slide.path,
            )
        )
    return buffer.getvalue()
