"""The review log: who judged what and when, one JSON object per line, only ever appended to.

Every line holds the SHA-256 of the line before it. A line that was changed or removed later therefore shows.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cytomil.errors import ReviewLogError
from cytomil.provenance import now

NAME = "review.jsonl"
INITIALS = r"^[A-Za-z0-9À-ÿ]{1,8}$"
MAX_REMARK = 4000
_FIRST = "0" * 64
_PATIENCE_S = 10.0
_MAX_LINE_BYTES = 1 << 16


class CellVerdict(StrEnum):
    """What a reader says of a cell."""

    ABNORMAL = "abnormal"
    NORMAL = "normal"
    NOT_A_CELL = "not a cell"
    UNSURE = "unsure"


class SlideVerdict(StrEnum):
    """What a reader says of a slide."""

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


class Entry(BaseModel):
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

    model_config = ConfigDict(frozen=True, extra="ignore")

    n: int = Field(ge=1)
    time: str
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
    previous: str

    @model_validator(mode="after")
    def _value_is_known(self) -> Self:
        if self.action is Action.CELL:
            CellVerdict(self.value)
            if not self.cell:
                raise ValueError("no cell is named")
        if self.action is Action.SLIDE:
            SlideVerdict(self.value)
        return self


class ReviewLog:
    """The log in ``folder``. Several processes may append to it; each line is on disk before `append` returns."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._here = threading.RLock()
        self._lock = FileLock(folder / f".{NAME}.lock", thread_local=False)
        self._entries: list[Entry] = []
        self._faults: list[str] = []
        self._read_bytes, self._n_lines, self._last_line = 0, 0, _FIRST

    def append(self, reader: str, action: Action, slide: str, **more: Any) -> Entry:
        """Append one entry, numbered and dated here. ``more`` are further fields of `Entry`.

        Raises:
            ReviewLogError: a field is not allowed, or the disk does not take the line.
        """
        try:
            with self._here, self._lock.acquire(timeout=_PATIENCE_S):
                return self._append({"reader": reader, "action": action, "slide": slide, **more})
        except Timeout:
            raise ReviewLogError(f"{self.path} is locked by another program. Try again.") from None
        except ValidationError as error:
            first = error.errors()[0]
            raise ReviewLogError(f"{'.'.join(map(str, first['loc'])) or 'entry'}: {first['msg']}.") from None
        except OSError as error:
            raise ReviewLogError(f"{self.path} cannot be written ({error.strerror or error}).") from None

    def _append(self, fields: dict[str, Any]) -> Entry:
        rest = self._read_on()
        previous = _sha256(rest) if rest else self._last_line
        number = max((entry.n for entry in self._entries), default=0)
        entry = Entry(n=number + 1, time=now(), previous=previous, **fields)
        line = entry.model_dump_json(exclude_defaults=True).encode() + b"\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            # What a full disk or a power cut left of a line stays, on a line of its own.
            _write_all(descriptor, b"\n" + line if rest else line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._read_on()
        return entry

    def entries(self) -> list[Entry]:
        """All entries, oldest first. Incomplete lines are passed over; `faults` lists them.

        Raises:
            ReviewLogError: the log cannot be read.
        """
        with self._here:
            self._read_on()
            return list(self._entries)

    def faults(self) -> list[str]:
        """One sentence per line that is incomplete, or does not follow from the line before it."""
        with self._here:
            rest = self._read_on()
            return [*self._faults, *([f"{self.path}: the last line is incomplete"] if rest else [])]

    def _read_on(self) -> bytes:
        """Read the lines appended since the last time; returns what stands after the last line end."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._read_bytes)
                *lines, rest = file.read().split(b"\n")
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise ReviewLogError(f"{self.path} cannot be read ({error.strerror or error}).") from None
        for line in lines:
            self._n_lines += 1
            entry = _parsed(line)
            if entry is None:
                self._faults.append(f"{self.path}, line {self._n_lines}, is incomplete or not an entry")
            else:
                if entry.previous != self._last_line:
                    self._faults.append(f"{self.path}, line {self._n_lines}: a line before it was changed or removed")
                self._entries.append(entry)
            self._last_line = _sha256(line)
            self._read_bytes += len(line) + 1
        return rest


class Judgements(BaseModel):
    """What one reader says at present. ``cells``: by cell id. ``last``: number of the entry that an undo takes back."""

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


def others(entries: list[Entry], reader: str, slide: str) -> dict[str, Judgements]:
    """What other readers say of ``slide``, by initials; empty until ``reader`` has given a verdict on it."""
    if Judgements.of(entries, reader, slide).verdict is None:
        return {}
    names = sorted({entry.reader for entry in entries if entry.slide == slide} - {reader})
    return {name: Judgements.of(entries, name, slide) for name in names}


def require_log_folder(folder: Path) -> None:
    """Raise `ReviewLogError` where nothing can be written into ``folder``."""
    if not os.access(folder, os.W_OK):
        raise ReviewLogError(f"{folder} cannot be written. The review is kept there: check its permissions.")


def _parsed(line: bytes) -> Entry | None:
    if len(line) > _MAX_LINE_BYTES:
        return None
    try:
        return Entry.model_validate(json.loads(line))
    except (ValueError, RecursionError):
        return None


def _sha256(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
