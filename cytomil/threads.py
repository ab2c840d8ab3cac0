"""Work done ahead in threads: in order, bounded, and out of the way of whoever waits for it."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from queue import SimpleQueue
from typing import TypeVar

# glibc's malloc.h; 32 MiB is the greatest threshold that it accepts.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT = 32 * 2**20
_KEPT_IN_ALL = 256 * 2**20


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """Have this whole process use blocks of up to 32 MiB again in place of returning them to the system.

    Of each arena's free end 256 MiB stay at most.

    A network on a processor makes and frees its maps with every batch. Returned to the system, each has to be mapped
    and cleared anew, which took EfficientNet-Lite0 at 128 px a quarter of its time.
    Only glibc can be told so; False elsewhere.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT_IN_ALL))


T = TypeVar("T")

_LESS_URGENT = 5  # nice


def let_waiting_threads_sleep() -> None:
    """Must be said before PyTorch is imported: its threads that wait by spinning make a busy machine many times slower."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def usable_cores() -> int:
    """The cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ahead(jobs: Iterable[Callable[[], T]], workers: int, most: int) -> Generator[T]:
    """Yield what ``jobs`` return, in their order, however the threads' timing falls.

    ``workers`` threads run them (0: one per usable core); at most ``most`` are begun and not yet used up, so memory is
    bounded. ``jobs`` is itself run through in a thread of its own, so it may wait for other work. An exception of a job, or
    of ``jobs``, is raised here at its place in the order. Whatever is under way when the iterator is closed is waited for,
    the rest dropped.
    """
    waiting: SimpleQueue[Future[T] | None] = SimpleQueue()
    slots, stopped = threading.Semaphore(most), threading.Event()
    pool = ThreadPoolExecutor(workers or usable_cores(), initializer=_give_way)

    def submit() -> None:
        try:
            for job in jobs:
                slots.acquire()
                if stopped.is_set():
                    break
                waiting.put(pool.submit(job))
        except BaseException as error:  # whatever it is, it is the consumer's to know
            failed: Future[T] = Future()
            failed.set_exception(error)
            waiting.put(failed)
        finally:
            if isinstance(jobs, Generator):
                jobs.close()
            waiting.put(None)

    # A daemon, so that a program that ends with the iterator neither used up nor closed does not wait for it for ever.
    feeder = threading.Thread(target=submit, daemon=True)
    feeder.start()
    try:
        while (future := waiting.get()) is not None:
            yield future.result()
            slots.release()
    finally:
        stopped.set()
        slots.release()
        feeder.join()
        pool.shutdown(cancel_futures=True)


def _give_way() -> None:
    """Let the thread that uses the results go first: it is the one that everything waits for.

    Only Linux knows the urgency of a single thread. A thread has that of the one that starts it, so it is reckoned from the
    process's own: work ahead that itself works ahead is not to starve.
    """
    if sys.platform == "linux":
        own = os.getpriority(os.PRIO_PROCESS, os.getpid())
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(19, own + _LESS_URGENT))
