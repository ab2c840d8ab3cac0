"""Run a job in several processes of this machine. If a process fails, only its current item must be tried again.

Threads would block each other, because much of the work on a slide holds Python's global lock. The standard library's
`multiprocessing` would run the caller's script again in each process.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from cytomil.errors import WorkersError
from cytomil.progress import Listener
from cytomil.threads import usable_cores
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
        self._setup = pickle.dumps((max(1, usable_cores() // max(1, n)), job))
        self._waiting = deque(range(len(items)))
        self._answers: SimpleQueue[tuple[int, Any]] = SimpleQueue()
        self._lock = threading.Lock()
        self._processes: list[_PoolProcess] = []
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
            self._answers.put((index, answer))

    def _start_process(self) -> _PoolProcess:
        with self._lock:
            if self._is_closed:
                raise _ClosedError
            process = _PoolProcess()
            self._processes.append(process)
        notes = process.send(self._setup)
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


class _PoolProcess:
    """One process. It runs `cytomil.workers.pool_process`."""

    def __init__(self) -> None:
        # The process must import the same modules as this one, and no others from the working directory.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cytomil.workers.pool_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches only this process, which then ends the other
        )

    def run(self, item: Any) -> Any:
        """The result of one item, `Raised`, or `WorkerFailure` if the process has ended."""
        return self.send(pickle.dumps(item))

    def send(self, message: bytes) -> Any:
        """The answer to a pickled message, as of `run`."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(pickle.dumps(message))
            stdin.flush()
            return pickle.load(stdout)
        except (OSError, EOFError, pickle.UnpicklingError, ValueError):
            status = self._process.wait()
            return WorkerFailure(f"killed by signal {-status}" if status < 0 else f"it ended with status {status}")

    def kill(self) -> None:
        """Kill the process. Its files stay valid, because all files are written completely or not at all."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):  # unwritten data in the buffer
                    stream.close()
