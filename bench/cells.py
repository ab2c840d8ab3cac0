"""Recall of labelled cells in real smears by cell detection, and its speed.

A labelled cell counts as found if a detection is within half a cell's diameter. Detections are assigned to labels one to
one, with the smallest total distance. A duplicate is an unassigned detection within half a diameter of a labelled cell and
of the detection assigned to it. Half a diameter is 20 level-0 px, because the median diameter in these pictures is 40 px.
Detections shifted arbitrarily would still match 37 % of the labels. `recall_within_quarter` (10 px) is therefore reported
too. The labels themselves are up to 10 px off. Not every cell is labelled, so precision cannot be measured.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.data import DATA, require_cells
from bench.tables import Measured, Table
from cytomil.slides import CellFinding, find_cells

HALF_DIAMETER_PX = 20.0
# The resolution tag of this slide is deliberately wrong.
GIVEN_MPP = {"smear-abnormal-4": 0.1}
Floats = npt.NDArray[np.float64]


def labelled_centres(cells_csv: Path) -> dict[str, Floats]:
    """Level-0 centres (N, 2) of the labelled cells, by slide."""
    centres: dict[str, list[tuple[float, float]]] = {}
    with cells_csv.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            centres.setdefault(row["slide"], []).append((float(row["x"]), float(row["y"])))
    return {slide: np.array(points) for slide, points in centres.items()}


def match(labels: Floats, found: Floats, max_px: float = HALF_DIAMETER_PX) -> tuple[int, int]:
    """The numbers of labels found and of duplicates, as defined above, with ``max_px`` as the largest distance."""
    from scipy.optimize import linear_sum_assignment

    if not len(found):
        return 0, 0
    distance = np.linalg.norm(labels[:, None] - found[None], axis=-1)
    rows, columns = linear_sum_assignment(np.where(distance <= max_px, distance, 1e6))
    close = distance[rows, columns] <= max_px
    assigned = dict(zip(rows[close].tolist(), columns[close].tolist(), strict=True))
    spare = np.setdiff1d(np.arange(len(found)), list(assigned.values()))
    duplicates = set()
    for label, detection in assigned.items():
        near = spare[distance[label, spare] <= max_px]
        duplicates |= set(near[np.linalg.norm(found[near] - found[detection], axis=1) <= max_px].tolist())
    return len(assigned), len(duplicates)


def recall_table(data: Path) -> list[dict[str, Any]]:
    """One row per slide, and one for all slides."""
    rows: list[dict[str, Any]] = []
    total = np.zeros(6)
    for name, labels in labelled_centres(data / "slides" / "cells.csv").items():
        start = time.perf_counter()
        found = find_cells(data / "slides" / f"{name}.tif", CellFinding(), mpp=GIVEN_MPP.get(name)).centres
        seconds = time.perf_counter() - start
        hits, duplicates = match(labels, found)
        strict, _ = match(labels, found, HALF_DIAMETER_PX / 2)
        numbers = np.array((len(labels), hits, strict, duplicates, len(found), seconds))
        total += numbers
        rows.append(_row(name, numbers))
    return [*rows, _row("all", total)]


def _row(name: str, numbers: npt.ArrayLike) -> dict[str, Any]:
    labels, hits, strict, duplicates, found, seconds = np.asarray(numbers, dtype=np.float64).tolist()
    return {
        "slide": name,
        "labelled": int(labels),
        "recall": round(hits / labels, 4),
        "recall_within_quarter": round(strict / labels, 4),
        "duplicates_percent": round(100 * duplicates / max(hits, 1), 2),
        "found": int(found),
        "seconds": round(seconds, 2),
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", nargs="?", type=Path, default=DATA, help="folder with slides/smear-*.tif and slides/cells.csv"
    )


def measure(options: argparse.Namespace) -> Measured:
    require_cells(options.data, "slides/cells.csv")
    rows = recall_table(options.data)
    return Measured({"slides": rows}, (Table.of(*map(_shown, rows)),))


def _shown(row: dict[str, Any]) -> dict[str, str]:
    return {
        "slide": row["slide"],
        "labelled": f"{row['labelled']:,}",
        "recall": f"{row['recall']:.3f}",
        "within a quarter": f"{row['recall_within_quarter']:.3f}",
        "duplicates, %": f"{row['duplicates_percent']:.2f}",
        "found": f"{row['found']:,}",
        "seconds": f"{row['seconds']:.1f}",
    }
