"""Prefetch results in threads: in order, with bounded memory and low priority."""

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

# From malloc.h of glibc. It accepts a threshold of at most 32 MiB.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MAX_KEPT_BLOCK = 32 * 2**20
_MAX_KEPT_TOTAL = 256 * 2**20


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """Make the whole process reuse freed blocks of up to 32 MiB instead of returning them to the system.

    Each arena keeps at most 256 MiB at its free end. A network on the CPU allocates and frees its feature maps with every
    batch. Mapping and clearing them again took a quarter of the time of EfficientNet-Lite0 at 128 px.

    Returns False if the C library is not glibc, which is the only one with this setting.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MAX_KEPT_BLOCK)) and bool(mallopt(_M_TRIM_THRESHOLD, _MAX_KEPT_TOTAL))


T = TypeVar("T")

_NICENESS = 5


def let_waiting_threads_sleep() -> None:
    """Make waiting OpenMP threads sleep, because spinning threads make a busy machine many times slower.

    Must be called before PyTorch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def usable_cores() -> int:
    """Number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prefetch(jobs: Iterable[Callable[[], T]], workers: int, max_pending: int) -> Generator[T]:
    """Yield the results of ``jobs`` in their order, computed in advance by threads.

    An exception of a job, or of ``jobs``, is raised at its place in the order. Closing the iterator waits for running jobs
    and discards the others.

    Args:
        jobs: functions to call. A separate thread iterates over them, so the iterator may wait for other work.
        workers: threads that call them; 0: one per usable core.
        max_pending: max number of started jobs whose results are not yet used, which bounds memory.
    """
    waiting: SimpleQueue[Future[T] | None] = SimpleQueue()
    slots, stopped = threading.Semaphore(max_pending), threading.Event()
    pool = ThreadPoolExecutor(workers or usable_cores(), initializer=_lower_priority)

    def submit() -> None:
        try:
            for job in jobs:
                slots.acquire()
                if stopped.is_set():
                    break
                waiting.put(pool.submit(job))
        except BaseException as error:  # the consumer raises it
            failed: Future[T] = Future()
            failed.set_exception(error)
            waiting.put(failed)
        finally:
            if isinstance(jobs, Generator):
                jobs.close()
            waiting.put(None)

    # A daemon thread. Otherwise a program could not end while the iterator is neither exhausted nor closed.
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


def _lower_priority() -> None:
    """Lower the priority of this thread, so that the thread that uses the results runs first.

    Only Linux has a priority per thread. A thread inherits that of its parent, so the new one is computed from the process.
    Otherwise nested calls of `prefetch` would lower it again and again.
    """
    if sys.platform == "linux":
        own = os.getpriority(os.PRIO_PROCESS, os.getpid())
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(19, own + _NICENESS))
