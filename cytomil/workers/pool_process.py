"""The program of a `ChildProcess`. It reads a job and then items from standard input, and writes one answer per message.

Run as ``python -m cytomil.workers.pool_process``. Messages are pickled twice. If the content of a message cannot be
unpickled, the error is returned as the answer, like any other.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import traceback
from functools import partial
from queue import SimpleQueue
from typing import Any, BinaryIO

from cytomil.errors import CytomilError
from cytomil.limits import impose, progress
from cytomil.workers.local import Heartbeat, JobContext, Notes, Raised


def main() -> None:
    """Start the job, and process items until standard input closes."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output that a library prints must not mix with the answers
    messages: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, messages), daemon=True).start()
    lock = threading.Lock()

    def send(answer: Any) -> None:
        with lock:
            _send(answers, answer)

    impose(partial(send, Heartbeat()))
    notes = Notes()
    try:
        cores, job = pickle.loads(messages.get())
        work = job.start(JobContext(notes, cores))
        answer: Any = notes.messages
    except Exception as error:
        answer = _raised(error)
    send(answer)
    while True:
        try:
            message = messages.get()
            progress()
            answer = next(work([pickle.loads(message)]))
        except Exception as error:
            answer = _raised(error)
        send(answer)


def _listen(stream: BinaryIO, messages: SimpleQueue[bytes]) -> None:
    """Queue the messages. End this process as soon as the calling process has ended."""
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
