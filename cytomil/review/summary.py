"""What a review found, and verdicts that come back from QuPath."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np

from cytomil.errors import ReviewError
from cytomil.review.log import Action, CellVerdict, Entry, Judgements
from cytomil.review.slides import CellPoints

_ALIASES = {"negative": CellVerdict.NORMAL, "positive": CellVerdict.ABNORMAL, "ignore*": CellVerdict.NOT_A_CELL}
_MAX_BYTES = 2 << 30


@dataclass
class Returned:
    """What a file says.

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

    A class is a verdict if it is called as one (abnormal, normal, not a cell, unsure), or positive, negative or Ignore*, in
    any case. Objects without a class and *key cell* are not judged.

    Raises:
        ReviewError: the file is no GeoJSON, or a cell has two verdicts.
    """
    from scipy.spatial import cKDTree

    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ReviewError(f"{path} is larger than any GeoJSON of a slide.")
        document = json.loads(path.read_text(encoding="utf-8"))
        features = document["features"] if isinstance(document, dict) else document
        objects = [(_class_of(feature), _centre(feature)) for feature in features]
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ReviewError(f"{path} is not a GeoJSON file of cells ({error}). Export it from QuPath again.") from None
    found = Returned()
    tree = cKDTree(cells.numbers[:, :2]) if len(cells.ids) else None
    for name, centre in objects:
        verdict = _verdict(name)
        if verdict is None:
            if name and name != "key cell":
                found.other_classes[name] = found.other_classes.get(name, 0) + 1
            continue
        distance, nearest = tree.query(centre) if tree else (np.inf, 0)
        if not distance <= cells.numbers[nearest, 2] / 2:
            found.unknown += 1
            continue
        cell = cells.ids[nearest]
        if found.verdicts.setdefault(cell, verdict) is not verdict:
            raise ReviewError(f"{path}: cell {cell} has two classes, {found.verdicts[cell]} and {verdict}.")
    return found


def _class_of(feature: dict[str, object]) -> str:
    properties = feature["properties"]
    given = properties.get("classification") if isinstance(properties, dict) else None
    return str(given.get("name") or "") if isinstance(given, dict) else ""


def _centre(feature: dict[str, object]) -> np.ndarray:
    geometry = feature.get("nucleusGeometry") or feature["geometry"]
    if not isinstance(geometry, dict):
        raise TypeError("an object has no outline")
    places = geometry["coordinates"]
    if geometry["type"] == "Point":
        return _checked(np.array(places[:2], float))
    if geometry["type"] == "MultiPolygon":
        places = places[0]
    ring = np.array(places[0], float)
    if ring.ndim != 2:
        raise ValueError("an outline is not a list of points")
    # A closed ring repeats its first corner.
    corners = ring[:-1] if len(ring) > 1 and (ring[0] == ring[-1]).all() else ring
    return _checked(corners[:, :2].mean(axis=0))


def _checked(centre: np.ndarray) -> np.ndarray:
    if centre.shape != (2,) or not np.isfinite(centre).all():
        raise ValueError("an object has no place")
    return centre


def _verdict(name: str) -> CellVerdict | None:
    plain = name.strip().lower()
    if plain in _ALIASES:
        return _ALIASES[plain]
    return CellVerdict(plain) if plain in {verdict.value for verdict in CellVerdict} else None


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
    """What all readers together say of a cell: ``verdict`` is None if they contradict each other or are unsure."""

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
