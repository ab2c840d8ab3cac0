"""Ctrl-C that is not lost: some libraries swallow it where it strikes inside one of their callbacks."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def kept_interrupts() -> Iterator[Callable[[], None]]:
    """Within, Ctrl-C does what it did before, and the function given raises `KeyboardInterrupt` if it ever came.

    Python handles signals in its main thread alone; in another nothing is changed.
    """
    came = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def check() -> None:
        if came.is_set():
            raise KeyboardInterrupt

    def note(number: int, frame: FrameType | None) -> None:
        came.set()
        if callable(before):
            before(number, frame)

    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield check
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
