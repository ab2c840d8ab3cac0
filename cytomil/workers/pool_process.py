"""A process of `ProcessPool`. It reads a job and then items from standard input, and writes one answer per message.

Run as ``python -m cytomil.workers.pool_process``. Messages are pickled twice. If the content of a message cannot be
unpickled, the error is returned as the answer, like any other.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import traceback
from queue import SimpleQueue
from typing import Any, BinaryIO

from cytomil.errors import CytomilError
from cytomil.workers.job import JobContext, Notes, Raised


def main() -> None:
    """Start the job, and process items until standard input closes."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output that a library prints must not mix with the answers
    messages: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, messages), daemon=True).start()
    notes = Notes()
    try:
        cores, job = pickle.loads(messages.get())
        work = job.start(JobContext(notes, cores))
        answer: Any = notes.messages
    except Exception as error:
        answer = _raised(error)
    _send(answers, answer)
    while True:
        try:
            answer = next(work([pickle.loads(messages.get())]))
        except Exception as error:
            answer = _raised(error)
        _send(answers, answer)


def _listen(stream: BinaryIO, messages: SimpleQueue[bytes]) -> None:
    """Queue the messages. End this process as soon as the calling process has ended, for whatever reason."""
    while True:
        try:
            messages.put(pickle.load(stream))
        except EOFError:
            os._exit(0)


def _raised(error: Exception) -> Raised:
    if not isinstance(error, CytomilError):
        error.add_note(traceback.format_exc())  # a bug: pickling drops the traceback
    return Raised(error)


def _send(stream: BinaryIO, answer: Any) -> None:
    try:
        stream.write(pickle.dumps(answer))
        stream.flush()
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    main()
