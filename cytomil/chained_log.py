"""A log with one JSON object per line. Lines are only appended.

Every line holds the SHA-256 of the line before it, and of its own other fields. A line that was changed or removed later
therefore shows. Missing lines at the end do not show.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any, Generic, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cytomil.cards import now
from cytomil.errors import CytomilError
from cytomil.files import sha256_of_json

_FIRST = "0" * 64
_PATIENCE_S = 10.0
_MAX_LINE_BYTES = 1 << 16


class ChainedEntry(BaseModel):
    """What every line holds.

    Args:
        n: its number, from 1.
        time: UTC, ISO 8601.
        previous: SHA-256 of the line before.
        sha256: of the other fields, as canonical JSON; "" in logs of earlier versions.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    n: int = Field(ge=1)
    time: str
    previous: str
    sha256: str = ""


E = TypeVar("E", bound=ChainedEntry)


class ChainedLog(Generic[E]):
    """A log of entries of one ``kind``. Several processes may append to it; each line is on disk before `append` returns.

    ``error`` is raised where the log cannot be read or written.
    """

    def __init__(self, path: Path, kind: type[E], error: type[CytomilError]) -> None:
        self.path = path
        self._kind, self._error = kind, error
        self._here = threading.RLock()
        self._lock = FileLock(path.with_name(f".{path.name}.lock"), thread_local=False)
        self._entries: list[E] = []
        self._faults: list[str] = []
        self._read_bytes, self._n_lines, self._last_line = 0, 0, _FIRST

    def append_fields(self, fields: dict[str, Any]) -> E:
        """Append one entry, numbered and dated here. ``fields`` are its other fields.

        Raises the error if a field is not allowed or the line cannot be written.
        """
        try:
            with self._here, self._lock.acquire(timeout=_PATIENCE_S):
                return self._append(fields)
        except Timeout:
            raise self._error(f"{self.path} is locked by another program. Try again.") from None
        except ValidationError as error:
            first = error.errors()[0]
            raise self._error(f"{'.'.join(map(str, first['loc'])) or 'entry'}: {first['msg']}.") from None
        except OSError as error:
            raise self._error(
                f"{self.path} cannot be written ({error.strerror or error}). Check its disk and permissions, or name another "
                "output folder."
            ) from None

    def _append(self, fields: dict[str, Any]) -> E:
        rest = self._read_on()
        previous = _sha256(rest) if rest else self._last_line
        number = max((entry.n for entry in self._entries), default=0)
        entry = self._kind(n=number + 1, time=now(), previous=previous, **fields)
        document = json.loads(entry.model_dump_json(exclude_defaults=True))
        line = json.dumps(document | {"sha256": sha256_of_json(document)}, ensure_ascii=False).encode() + b"\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            # A full disk or a power failure may have left an incomplete line. It stays, as a separate line.
            _write_all(descriptor, b"\n" + line if rest else line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._read_on()
        return self._entries[-1]

    def entries(self) -> list[E]:
        """All entries, oldest first. Incomplete lines are skipped; `faults` lists them.

        Raises the error if the log cannot be read.
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
        """Read the lines appended since the last time; returns the bytes after the last line end."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._read_bytes)
                *lines, rest = file.read().split(b"\n")
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise self._error(f"{self.path} cannot be read ({error.strerror or error}).") from None
        for line in lines:
            self._n_lines += 1
            entry = self._parsed(line)
            if entry is None:
                self._faults.append(f"{self.path}, line {self._n_lines}, is incomplete or not an entry")
            else:
                if not self._is_own(entry, line):
                    self._faults.append(f"{self.path}, line {self._n_lines}, was changed")
                if entry.previous != self._last_line:
                    self._faults.append(f"{self.path}, line {self._n_lines}: a line before it was changed or removed")
                self._entries.append(entry)
            self._last_line = _sha256(line)
            self._read_bytes += len(line) + 1
        return rest

    def _is_own(self, entry: E, line: bytes) -> bool:
        """Whether the line has its own hash, or comes from a version that wrote none."""
        if not entry.sha256:
            return not any(earlier.sha256 for earlier in self._entries)
        return entry.sha256 == sha256_of_json({k: v for k, v in json.loads(line).items() if k != "sha256"})

    def _parsed(self, line: bytes) -> E | None:
        if len(line) > _MAX_LINE_BYTES:
            return None
        try:
            return self._kind.model_validate(json.loads(line))
        except (ValueError, RecursionError):
            return None


def _sha256(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
