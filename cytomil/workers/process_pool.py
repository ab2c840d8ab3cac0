"""Run a job in several processes of this machine. If a process fails, only its current item must be tried again.

Threads would block each other, because much of the work on a slide holds Python's global lock.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from typing import Any

from cytomil.errors import WorkersError
from cytomil.progress import Listener
from cytomil.threads import usable_cores
from cytomil.workers.child_process import ChildProcess
from cytomil.workers.job import MAX_TRIES, Item, Job, Raised, Result, WorkerFailure, failure_reason


class ProcessPool:
    """Processes that divide the cores evenly. Each loads the job once and then processes one item at a time."""

    def __init__(self, processes: int) -> None:
        self._processes = processes

    def map(
        self, job: Job[Item, Result], items: Sequence[Item], listener: Listener, description: str, unit: str
    ) -> list[Result | WorkerFailure]:
        """See `Workers.map`. Raises `WorkersError` if a process does not start."""
        run = _Run(job, items, min(self._processes, len(items)), listener)
        try:
            results = dict(listener.track(run.results(), description, len(items), unit))
        finally:
            run.close()
        return [results[index] for index in range(len(items))]


class _ClosedError(Exception):
    """The run is closed and starts no more processes."""


class _Run:
    """One job over its items. One thread per process sends items and receives answers."""

    def __init__(self, job: Any, items: Sequence[Any], n: int, listener: Listener) -> None:
        self._items, self._listener = items, listener
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
                self._waiting.clear()  # an item that is begun now would be killed before its end
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
            for message in notes:
                if message not in self._noted:
                    self._noted.add(message)
                    self._listener.note(message)
        return process
