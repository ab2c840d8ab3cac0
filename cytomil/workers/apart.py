"""Work in another process, so that a file that crashes it, blocks it or exhausts its memory costs only that file.

Bag files and feature caches are read here too. Their checksum finds damage, but a file made to do harm has a fitting one.
Another process therefore reads all of such a file once, before this process opens it.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cytomil.errors import CytomilError, why_unreadable
from cytomil.hdf5 import Hdf5File, open_hdf5, read_all, require_sealed, state_of, was_written_here
from cytomil.limits import MEMORY_BYTES, are_imposed
from cytomil.workers.local import ChildProcess, Job, JobContext, Raised, WorkerFailure

NEEDS_MEMORY = f"needs more than {MEMORY_BYTES >> 30} GB of memory"
DAMAGED = "The file is damaged, or made to do harm."

_idle: dict[Job[Any, Any], list[tuple[ChildProcess, bool]]] = {}
# A forked process must not use its parent's pipes.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)


@atexit.register
def _end_idle() -> None:
    """End the idle processes before this one. Otherwise they would keep its working folder in use for a moment longer."""
    for processes in _idle.values():
        for child, _ in processes:
            child.kill()
    _idle.clear()


class EndedError(Exception):
    """The process ended or blocked. The message says how."""


class ProcessApart:
    """Runs the items of a job one after another in another process, and replaces the process if it ends.

    Starting the process takes up to half a second, so a later `ProcessApart` with an equal job takes over an idle one.
    """

    def __init__(self, job: Job[Any, Any]) -> None:
        self._job = job
        self._child: ChildProcess | None = None
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close() if error is None else self.kill()

    def start(self) -> None:
        """Start the process, without waiting for it."""
        if self._child is None:
            try:
                self._child, self._is_new = _idle[self._job].pop()
            except (KeyError, IndexError):
                self._child, self._is_new = ChildProcess(), True

    def close(self) -> None:
        """Leave the process to a later `ProcessApart`."""
        if self._child is not None:
            _idle.setdefault(self._job, []).append((self._child, self._is_new))
            self._child = None

    def kill(self) -> None:
        """End the process at once."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def ask(self, item: Any) -> Any:
        """The job's result for one item. Raises what the job raises, and `EndedError`."""
        self.start()
        child = self._child
        assert child is not None
        answer = None
        if self._is_new:
            self._is_new = False
            answer = child.start(self._job, cores=0)
        if not isinstance(answer, WorkerFailure):
            answer = child.run(item)
        if isinstance(answer, WorkerFailure):
            self.kill()
            raise EndedError(f"its reader stopped ({answer.reason})")
        if isinstance(answer, Raised):
            raise answer.error
        return answer


@dataclass(frozen=True)
class _ReadAll:
    """The job of a process that reads HDF5 files before this process does."""

    device: str = "cpu"

    def start(self, context: JobContext) -> Callable[[Iterable[Path]], Iterator[str]]:
        """See `cytomil.workers.Job`."""
        return partial(map, read_all)


@contextmanager
def reading_hdf5(path: Path, error: type[CytomilError], what: str, verb: str) -> Iterator[Hdf5File]:
    """As `reading_sealed`, for files that a command makes.

    The message says ``what`` such files are, and which ``verb`` makes them.
    """
    if not path.is_file():
        raise error(f"{path} does not exist. Make {what} with `cytomil {verb}`.")
    with reading_sealed(path, error, f"Make it again with `cytomil {verb}`.") as file:
        yield file


@contextmanager
def reading_sealed(path: Path, error: type[CytomilError], cure: str) -> Iterator[Hdf5File]:
    """Verify the checksum of ``path``, have all of it read in another process, and open it for reading.

    Any fault of the file is raised as ``error``, and ``cure`` ends each message. A process that has the limits of
    `cytomil.limits` itself needs no other one, and neither do files that this process wrote.
    """
    require_sealed(path, error, cure)
    try:
        fault = "" if are_imposed() or was_written_here(path) else _fault_apart(path.absolute(), *state_of(path))
    except OSError as problem:
        raise error(f"{path}: {why_unreadable(path, problem)}") from None
    if fault:
        raise error(f"{path}: {fault}. {DAMAGED} {cure}")
    with open_hdf5(path, error, cure) as file:
        yield file


@lru_cache(maxsize=4096)
def _fault_apart(path: Path, *state: int) -> str:
    """Why this process must not read a file of this identity, size and time; "" if it may."""
    with ProcessApart(_ReadAll()) as process:
        try:
            return str(process.ask(path))
        except EndedError as ended:
            return str(ended)
        except MemoryError:
            return NEEDS_MEMORY
