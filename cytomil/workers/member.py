"""A process of `SideBySide`: reads a job and then items from standard input, writes one answer each to standard output.

Run as ``python -m cytomil.workers.member``. Messages are pickled in pickled bytes, so that one whose content cannot be loaded
is answered like any other fault.
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
from cytomil.workers.job import Notes, Place, Raised


def main() -> None:
    """Start the job, and do items until there are no more."""
    told = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not come between the answers
    orders: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, orders), daemon=True).start()
    notes = Notes()
    try:
        cores, job = pickle.loads(orders.get())
        work = job.start(Place(notes, cores))
        answer: Any = notes.said
    except Exception as error:
        answer = _raised(error)
    _tell(told, answer)
    while True:
        try:
            answer = next(work([pickle.loads(orders.get())]))
        except Exception as error:
            answer = _raised(error)
        _tell(told, answer)


def _listen(asked: BinaryIO, orders: SimpleQueue[bytes]) -> None:
    """Pass on what is asked. Where the process that asks is gone, however it ended, this one ends at once."""
    while True:
        try:
            orders.put(pickle.load(asked))
        except EOFError:
            os._exit(0)


def _raised(error: Exception) -> Raised:
    if not isinstance(error, CytomilError):
        error.add_note(traceback.format_exc())  # a fault of our own: what is raised elsewhere does not say where it was
    return Raised(error)


def _tell(told: BinaryIO, answer: Any) -> None:
    try:
        told.write(pickle.dumps(answer))
        told.flush()
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    main()
