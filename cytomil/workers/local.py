"""The interface between jobs and workers, and the workers of this machine: in this process, or in several.

If a process fails, only its current item must be tried again. Threads would block each other, because much of the work
on a slide holds Python's global lock. The standard library's `multiprocessing` would run the caller's script again in
each process.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

from cytomil.errors import DEBUG, WorkersError
from cytomil.limits import CPU_S
from cytomil.progress import Listener, Silent
from cytomil.threads import usable_cores

Item = TypeVar("Item")
Result = TypeVar("Result")
Item_contra = TypeVar("Item_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)


@dataclass(frozen=True)
class JobContext:
    """The context in which a worker starts a job.

    Args:
        listener: receives the notes of the job.
        cores: number of cores of this worker; 0: all cores of the machine.
    """

    listener: Listener
    cores: int = 0

    def threads(self, requested: int) -> int:
        """Number of threads to use. ``requested`` is the user's setting (0: one per core)."""
        return requested or self.cores


@dataclass(frozen=True)
class WorkerFailure:
    """Replaces the result of an item if too many workers failed on it. ``reason`` is one line for the user."""

    reason: str


class Job(Protocol[Item_contra, Result_co]):
    """Work on independent items. A job is pickled for another process, so it must be small."""

    @property
    def device(self) -> str:
        """The user's device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``. On Ray, a worker has its own GPU unless ``cpu``."""
        ...

    def start(self, context: JobContext) -> Callable[[Iterable[Item_contra]], Iterator[Result_co]]:
        """Load what all items need, once per worker.

        Returns:
            A function from items to results, one per item, in order. It may prefetch.

        Raises:
            CytomilError: the user made a mistake. The function may raise it too.
        """
        ...


def do_nothing() -> None:
    """Does nothing."""


class Workers(Protocol):
    """Runs jobs."""

    def map(
        self,
        job: Job[Item, Result],
        items: Sequence[Item],
        listener: Listener,
        description: str,
        unit: str,
        on_begin: Callable[[], None] = do_nothing,
    ) -> list[Result | WorkerFailure]:
        """One result per item, in the order of the items. A `CytomilError` of the job ends it and is raised here.

        ``on_begin`` is called once, when a worker is ready and before the first item is begun.
        """
        ...


MAX_TRIES = 3
"""Number of workers that may fail on an item before it is given up."""


@dataclass(frozen=True)
class Raised:
    """An exception of a worker, to be raised in the process that called it."""

    error: Exception


class Notes(Silent):
    """Collects the notes of a job while it starts."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def note(self, message: str) -> None:
        """Keep the message."""
        self.messages.append(message)


def failure_reason(reason: str) -> str:
    """Why an item has no result, in one line for the user."""
    return f"the worker failed {MAX_TRIES} times on it ({reason})."


class InProcess:
    """Runs jobs in the calling process, with all cores of the machine."""

    def map(
        self,
        job: Job[Item, Result],
        items: Sequence[Item],
        listener: Listener,
        description: str,
        unit: str,
        on_begin: Callable[[], None] = do_nothing,
    ) -> list[Result | WorkerFailure]:
        """See `Workers.map`."""
        work = job.start(JobContext(listener))
        on_begin()
        return list(listener.track(work(items), description, len(items), unit))


PATIENCE_S = 120.0
"""Seconds without an answer or a report of progress after which a process is killed."""
_ENDED = object()


@dataclass(frozen=True)
class Heartbeat:
    """Reports that a process works on its message."""


class ChildProcess:
    """A process that runs `cytomil.workers.pool_process`, with the limits of `cytomil.limits`."""

    def __init__(self) -> None:
        # The process must import the same modules as this one, and no others from the working directory.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cytomil.workers.pool_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Libraries print messages about damaged files to it. The answer contains the reason.
            stderr=None if os.environ.get(DEBUG) else subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches only this process, which then ends the other
        )
        self._answers: SimpleQueue[Any] = SimpleQueue()
        self._reader = threading.Thread(target=self._read_answers, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def start(self, job: Any, cores: int) -> Any:
        """Load a job with so many cores (0: all). Returns the notes of the job, or as `run`."""
        return self.send(pickle.dumps((cores, job)))

    def run(self, item: Any) -> Any:
        """The result of one item, `Raised`, or `WorkerFailure` if the process has ended or sends no heartbeat."""
        return self.send(pickle.dumps(item))

    def send(self, message: bytes) -> Any:
        """The answer to a pickled message, as of `run`."""
        stdin = self._process.stdin
        assert stdin is not None
        with suppress(OSError, ValueError):  # the process has ended, and the answer reports it
            stdin.write(pickle.dumps(message))
            stdin.flush()
        while True:
            try:
                answer = self._answers.get(timeout=PATIENCE_S)
            except Empty:
                self.kill()
                return WorkerFailure(f"it made no progress for {PATIENCE_S:.0f} s")
            if answer is _ENDED:
                return WorkerFailure(_why_ended(self._process.wait()))
            if not isinstance(answer, Heartbeat):
                return answer

    def kill(self) -> None:
        """Kill the process. Its files stay valid, because all files are written completely or not at all."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):  # unwritten data in the buffer
                    stream.close()

    def _read_answers(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        try:
            while True:
                self._answers.put(pickle.load(stdout))
        except (OSError, EOFError, pickle.UnpicklingError, ValueError):
            self._answers.put(_ENDED)


def _why_ended(status: int) -> str:
    if status >= 0:
        return f"it ended with status {status}"
    if -status == getattr(signal, "SIGXCPU", None):
        return f"it computed for {CPU_S} s without progress"
    return f"killed by signal {-status}"


class ProcessPool:
    """Processes that divide the cores evenly. Each loads the job once and then processes one item at a time."""

    def __init__(self, processes: int) -> None:
        self._processes = processes

    def map(
        self,
        job: Job[Item, Result],
        items: Sequence[Item],
        listener: Listener,
        description: str,
        unit: str,
        on_begin: Callable[[], None] = do_nothing,
    ) -> list[Result | WorkerFailure]:
        """See `Workers.map`. Raises `WorkersError` if a process does not start."""
        run = _Run(job, items, min(self._processes, len(items)), listener, on_begin)
        try:
            results = dict(listener.track(run.results(), description, len(items), unit))
        finally:
            run.close()
        return [results[index] for index in range(len(items))]


class _ClosedError(Exception):
    """The run is closed and starts no more processes."""


class _Run:
    """One job over its items. One thread per process sends items and receives answers."""

    def __init__(
        self, job: Any, items: Sequence[Any], n: int, listener: Listener, on_begin: Callable[[], None]
    ) -> None:
        self._items, self._listener, self._on_begin = items, listener, on_begin
        self._job, self._cores = job, max(1, usable_cores() // max(1, n))
        self._waiting = deque(range(len(items)))
        self._answers: SimpleQueue[tuple[int, Any]] = SimpleQueue()
        self._lock = threading.Lock()
        self._processes: list[ChildProcess] = []
        self._is_closed = False
        self._noted: set[str] = set()
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(n)]

    def results(self) -> Iterator[tuple[int, Any]]:
        """Index and result of each item, in order of completion. Raises the job's errors and `WorkersError`."""
        for thread in self._threads:
            thread.start()
        for _ in self._items:
            index, answer = self._answers.get()
            if isinstance(answer, Raised):
                raise answer.error
            yield index, answer

    def close(self) -> None:
        """Kill the processes."""
        with self._lock:
            self._is_closed = True
        for process in self._processes:
            process.kill()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _serve(self) -> None:
        process = None
        while True:
            try:
                index = self._waiting.popleft()
            except IndexError:
                return
            try:
                answer: Any = None
                for _ in range(MAX_TRIES):
                    process = process or self._start_process()
                    answer = process.run(self._items[index])
                    if not isinstance(answer, WorkerFailure):
                        break
                    process = None
                else:
                    answer = WorkerFailure(failure_reason(answer.reason))
            except _ClosedError:
                return
            except Exception as error:  # results() raises it in the calling thread
                answer = Raised(error)
            if isinstance(answer, Raised):
                self._waiting.clear()  # an item started now would be killed before it is finished
            self._answers.put((index, answer))

    def _start_process(self) -> ChildProcess:
        with self._lock:
            if self._is_closed:
                raise _ClosedError
            process = ChildProcess()
            self._processes.append(process)
        notes = process.start(self._job, self._cores)
        if isinstance(notes, Raised):
            raise notes.error
        if isinstance(notes, WorkerFailure):
            with self._lock:
                if self._is_closed:
                    raise _ClosedError
            raise WorkersError(f"a process for --workers does not start: {notes.reason}. Use --workers 1.")
        with self._lock:
            self._on_begin()
            self._on_begin = do_nothing
            for message in notes:
                if message not in self._noted:
                    self._noted.add(message)
                    self._listener.note(message)
        return process
