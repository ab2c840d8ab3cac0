"""Items over several processes of this machine. A process that is lost costs its item a try and nothing else.

Processes, because much of the work on a slide holds Python's lock: threads would wait for each other. Ones of their own
making, because `multiprocessing` would run the caller's script again in each.
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
from cytomil.workers.job import TRIES, Item, Job, Lost, Raised, Result, gave_up


class SideBySide:
    """So many processes, each of which loads the job once and then does one item at a time with its share of the cores."""

    def __init__(self, processes: int) -> None:
        self._processes = processes

    def map(
        self, job: Job[Item, Result], items: Sequence[Item], listener: Listener, description: str, unit: str
    ) -> list[Result | Lost]:
        """See `Workers.map`. Raises `WorkersError` where a process does not start."""
        crew = _Crew(job, items, min(self._processes, len(items)), listener)
        try:
            results = dict(listener.track(crew.results(), description, len(items), unit))
        finally:
            crew.dismiss()
        return [results[index] for index in range(len(items))]


class _DismissedError(Exception):
    """No process is started any more."""


class _Crew:
    """One thread a process, which hands it items and waits for its answers."""

    def __init__(self, job: Any, items: Sequence[Any], n: int, listener: Listener) -> None:
        self._items, self._listener = items, listener
        self._orders = pickle.dumps((max(1, usable_cores() // max(1, n)), job))
        self._waiting = deque(range(len(items)))
        self._answers: SimpleQueue[tuple[int, Any]] = SimpleQueue()
        self._lock = threading.Lock()
        self._hired: list[_Member] = []
        self._is_dismissed = False
        self._said: set[str] = set()
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(n)]

    def results(self) -> Iterator[tuple[int, Any]]:
        """Each item's number and result as they come. Raises what the job raises, and `WorkersError`."""
        for thread in self._threads:
            thread.start()
        for _ in self._items:
            index, answer = self._answers.get()
            if isinstance(answer, Raised):
                raise answer.error
            yield index, answer

    def dismiss(self) -> None:
        """End the processes, whatever they are at."""
        with self._lock:
            self._is_dismissed = True
        for member in self._hired:
            member.end()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _serve(self) -> None:
        member = None
        while True:
            try:
                index = self._waiting.popleft()
            except IndexError:
                return
            try:
                answer: Any = None
                for _ in range(TRIES):
                    member = member or self._hire()
                    answer = member.ask(self._items[index])
                    if not isinstance(answer, Lost):
                        break
                    member = None
                else:
                    answer = Lost(gave_up(answer.reason))
            except _DismissedError:
                return
            except Exception as error:  # whatever it is, it is the caller's to know
                answer = Raised(error)
            self._answers.put((index, answer))

    def _hire(self) -> _Member:
        with self._lock:
            if self._is_dismissed:
                raise _DismissedError
            member = _Member()
            self._hired.append(member)
        notes = member.tell(self._orders)
        if isinstance(notes, Raised):
            raise notes.error
        if isinstance(notes, Lost):
            with self._lock:
                if self._is_dismissed:
                    raise _DismissedError
            raise WorkersError(f"a process for --workers does not start: {notes.reason}. Use --workers 1.")
        with self._lock:
            for message in notes:
                if message not in self._said:
                    self._said.add(message)
                    self._listener.note(message)
        return member


class _Member:
    """One process; see `cytomil.workers.member`."""

    def __init__(self) -> None:
        # The same modules as here, wherever they were found, and nothing else that lies in the folder of work.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cytomil.workers.member"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C is for this process, which then ends the other
        )

    def ask(self, item: Any) -> Any:
        """The result of one item, or `Raised`, or `Lost` where the process has ended."""
        return self.tell(pickle.dumps(item))

    def tell(self, message: bytes) -> Any:
        """The answer to a pickled message."""
        asked, told = self._process.stdin, self._process.stdout
        assert asked is not None
        assert told is not None
        try:
            asked.write(pickle.dumps(message))
            asked.flush()
            return pickle.load(told)
        except (OSError, EOFError, pickle.UnpicklingError, ValueError):
            status = self._process.wait()
            return Lost(f"killed by signal {-status}" if status < 0 else f"it ended with status {status}")

    def end(self) -> None:
        """Kill the process: whatever it has in hand is written whole or not at all."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):  # something was still to be written to it
                    stream.close()
