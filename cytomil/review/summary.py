"""Summaries of a review, and verdicts from QuPath."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np

from cytomil.errors import ReviewError
from cytomil.geojson import read_objects
from cytomil.review.log import Action, CellVerdict, Entry, Judgements
from cytomil.review.slides import CellPoints
from cytomil.triage.whole_slide import OWN_CLASSES


@dataclass
class Returned:
    """The verdicts of one GeoJSON file.

    Args:
        verdicts: cell id → verdict.
        other_classes: names of classes that are no verdicts, with the number of their objects.
        unknown: number of objects with a verdict that are none of the slide's cells.
    """

    verdicts: dict[str, CellVerdict] = field(default_factory=dict)
    other_classes: dict[str, int] = field(default_factory=dict)
    unknown: int = 0


def read_classes(path: Path, cells: CellPoints) -> Returned:
    """Read the classes of cells, each found by the centre of its outline among ``cells``.

    `ClassifiedObject.verdict` says which classes are verdicts. Objects without a class or of `OWN_CLASSES` are not judged.

    Raises:
        TableError: the file is no GeoJSON.
        ReviewError: a cell has two verdicts.
    """
    from scipy.spatial import cKDTree

    found = Returned()
    tree = cKDTree(cells.numbers[:, :2]) if len(cells.ids) else None
    for one in read_objects(path):
        if one.verdict is None:
            if one.name and one.name not in OWN_CLASSES:
                found.other_classes[one.name] = found.other_classes.get(one.name, 0) + 1
            continue
        distance, nearest = tree.query(one.centre) if tree else (np.inf, 0)
        if not distance <= cells.numbers[nearest, 2] / 2:
            found.unknown += 1
            continue
        cell, verdict = cells.ids[nearest], CellVerdict(one.verdict)
        if found.verdicts.setdefault(cell, verdict) is not verdict:
            raise ReviewError(f"{path}: cell {cell} has two classes, {found.verdicts[cell]} and {verdict}.")
    return found


_PAUSE_S = 300.0
"""A longer gap between two actions is a break, and does not count as reading time."""


@dataclass(frozen=True)
class SlideSummary:
    """One reader's review of one slide.

    Args:
        slide: the slide's name.
        reader: initials.
        judged: number of cells that the reader judged.
        abnormal: how many of these were called abnormal.
        key_judged: number of key cells among the judged.
        key_abnormal: how many of these were called abnormal.
        minutes: time from opening to the last action, without breaks of more than five minutes.
        verdict: on the slide; empty if none was given.
    """

    slide: str
    reader: str
    judged: int
    abnormal: int
    key_judged: int
    key_abnormal: int
    minutes: float
    verdict: str


@dataclass(frozen=True)
class Agreement:
    """How far two readers agree on the cells that both judged; ``kappa`` is Cohen's, None if either used one verdict only."""

    readers: tuple[str, str]
    n: int
    kappa: float | None


@dataclass(frozen=True)
class CellsVerdict:
    """The joint verdict of all readers on a cell: ``verdict`` is None if they contradict each other or are unsure."""

    slide: str
    cell: str
    verdict: CellVerdict | None


def summarise(entries: Sequence[Entry]) -> list[SlideSummary]:
    """One summary per reader and slide, in the order of the first action."""
    pairs = dict.fromkeys((entry.slide, entry.reader) for entry in entries)
    ranks = {(entry.slide, entry.cell): entry.rank for entry in entries if entry.action is Action.CELL}
    found = []
    for slide, reader in pairs:
        own = Judgements.of(list(entries), reader, slide)
        keys = {cell: verdict for cell, verdict in own.cells.items() if ranks.get((slide, cell))}
        found.append(
            SlideSummary(
                slide,
                reader,
                len(own.cells),
                sum(verdict is CellVerdict.ABNORMAL for verdict in own.cells.values()),
                len(keys),
                sum(verdict is CellVerdict.ABNORMAL for verdict in keys.values()),
                _minutes([entry for entry in entries if (entry.slide, entry.reader) == (slide, reader)]),
                own.verdict or "",
            )
        )
    return found


def _minutes(entries: Sequence[Entry]) -> float:
    times = [datetime.fromisoformat(entry.time).timestamp() for entry in entries]
    gaps = [after - before for before, after in pairwise(times)]
    return sum(gap for gap in gaps if 0 <= gap <= _PAUSE_S) / 60


def agreements(entries: Sequence[Entry]) -> list[Agreement]:
    """Every two readers' agreement on the cells that both judged."""
    from sklearn.metrics import cohen_kappa_score

    said = _by_reader(entries)
    found = []
    for i, first in enumerate(said):
        for second in list(said)[i + 1 :]:
            both = sorted(said[first].keys() & said[second].keys())
            if not both:
                continue
            theirs = [[said[reader][cell].value for cell in both] for reader in (first, second)]
            # With one verdict throughout, agreement beyond chance is not defined.
            kappa = float(cohen_kappa_score(*theirs)) if len({*theirs[0], *theirs[1]}) > 1 else None
            found.append(Agreement((first, second), len(both), kappa))
    return found


def verdicts(entries: Sequence[Entry]) -> list[CellsVerdict]:
    """Each judged cell once. Normal and not a cell do not contradict each other: neither is abnormal."""
    by_cell: dict[tuple[str, str], list[CellVerdict]] = {}
    for own in _by_reader(entries).values():
        for cell, verdict in own.items():
            by_cell.setdefault(cell, []).append(verdict)
    return [CellsVerdict(slide, cell, _common(given)) for (slide, cell), given in by_cell.items()]


def _common(given: Sequence[CellVerdict]) -> CellVerdict | None:
    sides = {verdict is CellVerdict.ABNORMAL for verdict in given}
    return given[0] if len(sides) == 1 and CellVerdict.UNSURE not in given else None


def _by_reader(entries: Sequence[Entry]) -> dict[str, dict[tuple[str, str], CellVerdict]]:
    found: dict[str, dict[tuple[str, str], CellVerdict]] = {}
    for slide, reader in dict.fromkeys((entry.slide, entry.reader) for entry in entries):
        own = Judgements.of(list(entries), reader, slide)
        found.setdefault(reader, {}).update({(slide, cell): verdict for cell, verdict in own.cells.items()})
    return found
