"""What a review found: how precise the top of each list was, how far readers agree, and the verdicts that fitting can use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from cytomil.review.log import Action, CellVerdict, Entry, Judgements

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
