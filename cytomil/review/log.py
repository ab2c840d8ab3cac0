"""The review log: who judged what and when, one JSON object per line; see `cytomil.chained_log`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field, model_validator

from cytomil.chained_log import ChainedEntry, ChainedLog
from cytomil.errors import ReviewLogError

NAME = "review.jsonl"
INITIALS = r"^[A-Za-z0-9À-ÿ]{1,8}$"
MAX_REMARK = 4000


class CellVerdict(StrEnum):
    """The verdict of a reader on a cell."""

    ABNORMAL = "abnormal"
    NORMAL = "normal"
    NOT_A_CELL = "not a cell"
    UNSURE = "unsure"


class SlideVerdict(StrEnum):
    """The verdict of a reader on a slide."""

    POSITIVE = "positive"
    NEGATIVE = "negative"
    UNSURE = "unsure"
    UNREADABLE = "cannot be read"


class Action(StrEnum):
    """What a reader did."""

    OPEN = "open"
    CELL = "cell"
    SLIDE = "slide"
    REMARK = "remark"
    UNDO = "undo"


class Entry(ChainedEntry):
    """One line of the log.

    Args:
        n: number of the entry, from 1.
        time: UTC, ISO 8601.
        reader: the reader's initials.
        action: what was done.
        slide: the slide's name in the worklist.
        slide_sha256: of the slide's content when it was ranked.
        model_sha256: of the triage model's card.
        cell: the cell's id; empty for a whole slide.
        value: a `CellVerdict`, a `SlideVerdict` or the text of a remark.
        score: the model's score of the cell.
        rank: place among the slide's key cells, from 1; None for other cells.
        of: number of the entry that an undo takes back.
        previous: SHA-256 of the line before.
    """

    reader: str = Field(pattern=INITIALS)
    action: Action
    slide: str
    slide_sha256: str = ""
    model_sha256: str = ""
    cell: str = ""
    value: str = Field("", max_length=MAX_REMARK)
    score: float | None = None
    rank: int | None = None
    of: int | None = None

    @model_validator(mode="after")
    def _value_is_known(self) -> Self:
        if self.action is Action.CELL:
            CellVerdict(self.value)
            if not self.cell:
                raise ValueError("no cell is named")
        if self.action is Action.SLIDE:
            SlideVerdict(self.value)
        return self


class ReviewLog(ChainedLog[Entry]):
    """The log in ``folder``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / NAME, Entry, ReviewLogError)

    def append(self, reader: str, action: Action, slide: str, **more: Any) -> Entry:
        """Append one entry, numbered and dated here. ``more`` are further fields of `Entry`.

        Raises:
            ReviewLogError: a field is not allowed, or the line cannot be written.
        """
        return self.append_fields({"reader": reader, "action": action, "slide": slide, **more})


class Judgements(BaseModel):
    """The present verdicts of one reader. ``cells``: by cell id. ``last``: number of the entry that an undo takes back."""

    cells: dict[str, CellVerdict] = {}
    verdict: SlideVerdict | None = None
    remark: str = ""
    last: int | None = None

    @classmethod
    def of(cls, entries: list[Entry], reader: str, slide: str) -> Self:
        """The judgements of ``reader`` on ``slide`` after all entries, undone ones left out."""
        undone = {entry.of for entry in entries if entry.action is Action.UNDO}
        found = cls()
        for entry in entries:
            if entry.reader != reader or entry.slide != slide or entry.n in undone:
                continue
            if entry.action is Action.CELL:
                found.cells[entry.cell] = CellVerdict(entry.value)
            elif entry.action is Action.SLIDE:
                found.verdict = SlideVerdict(entry.value)
            elif entry.action is Action.REMARK:
                found.remark = entry.value
            else:
                continue
            found.last = entry.n
        return found


def of_other_versions(entries: Sequence[Entry], sha256_of: Mapping[str, str]) -> list[Entry]:
    """The entries on slides whose content has changed since. ``sha256_of``: name of a slide → its content now, "" if unknown.

    A new model is not a change, because the cells of the slide stay the same.
    """
    return [
        entry
        for entry in entries
        if entry.slide_sha256 and sha256_of.get(entry.slide) and entry.slide_sha256 != sha256_of[entry.slide]
    ]


def of_these_versions(entries: Sequence[Entry], sha256_of: Mapping[str, str]) -> list[Entry]:
    """All entries but those of `of_other_versions`."""
    others_of = {entry.n for entry in of_other_versions(entries, sha256_of)}
    return [entry for entry in entries if entry.n not in others_of]


def others(entries: list[Entry], reader: str, slide: str) -> dict[str, Judgements]:
    """The verdicts of other readers on ``slide``, by initials; empty until ``reader`` has given a verdict on it."""
    if Judgements.of(entries, reader, slide).verdict is None:
        return {}
    names = sorted({entry.reader for entry in entries if entry.slide == slide} - {reader})
    return {name: Judgements.of(entries, name, slide) for name in names}


def require_log_folder(folder: Path) -> None:
    """Raise `ReviewLogError` if nothing can be written into ``folder``."""
    if not os.access(folder, os.W_OK):
        raise ReviewLogError(f"{folder} cannot be written. The review is kept there: check its permissions.")
