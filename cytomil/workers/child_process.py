"""A process that works for this one. It answers one message after another, and may crash or block without harm.

The standard library's `multiprocessing` would run the caller's script again in each process.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from cytomil.limits import CPU_S
from cytomil.workers.job import WorkerFailure

PATIENCE_S = 120.0
"""Seconds without an answer or a sign of progress after which a process is killed."""
_ENDED = object()


@dataclass(frozen=True)
class Sign:
    """Says that a process works on its message."""


class ChildProcess:
    """A process that runs `cytomil.workers.pool_process`, with the limits of `cytomil.limits`."""

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
        """The result of one item, `Raised`, or `WorkerFailure` if the process has ended or gives no sign."""
        return self.send(pickle.dumps(item))

    def send(self, message: bytes) -> Any:
        """The answer to a pickled message, as of `run`."""
        stdin = self._process.stdin
        assert stdin is not None
        with suppress(OSError, ValueError):  # it has ended, which the answer says
            stdin.write(pickle.dumps(message))
            stdin.flush()
        while True:
            try:
                answer = self._answers.get(timeout=PATIENCE_S)
            except Empty:
                self.kill()
                return WorkerFailure(f"it did nothing for {PATIENCE_S:.0f} s")
            if answer is _ENDED:
                return WorkerFailure(_why_ended(self._process.wait()))
            if not isinstance(answer, Sign):
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
