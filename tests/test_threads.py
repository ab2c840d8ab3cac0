from __future__ import annotations

import threading
import time
from functools import partial

import pytest

from cytomil.threads import prefetch


def slow_square(n):
    time.sleep(0.002 * (n % 3))
    return n * n


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_the_order_of_the_jobs(workers):
    jobs = (partial(slow_square, n) for n in range(30))
    assert list(prefetch(jobs, workers, 4)) == [n * n for n in range(30)]


def test_no_more_is_begun_than_was_allowed():
    begun, used = [], 0
    for n in prefetch((partial(lambda n: begun.append(n) or n, n) for n in range(40)), 2, 5):
        time.sleep(0.001)
        assert n == used
        assert len(begun) <= used + 5
        used += 1
    assert used == 40


def fails():
    raise KeyError("this job")


def test_a_failed_job_is_raised_at_its_place():
    results = prefetch(iter([partial(slow_square, 2), fails, partial(slow_square, 3)]), 2, 2)
    assert next(results) == 4
    with pytest.raises(KeyError, match="this job"):
        next(results)


def test_what_the_source_of_jobs_raises_reaches_the_consumer():
    def jobs():
        yield partial(slow_square, 1)
        raise OSError("cut off")

    results = prefetch(jobs(), 2, 2)
    assert next(results) == 1
    with pytest.raises(OSError, match="cut off"):
        next(results)


def test_closing_ends_the_threads_and_the_source():
    closed = threading.Event()

    def jobs():
        try:
            for n in range(10_000):
                yield partial(slow_square, n)
        finally:
            closed.set()

    before = threading.active_count()
    results = prefetch(jobs(), 2, 3)
    next(results)
    results.close()
    assert closed.is_set()
    assert threading.active_count() == before


def test_jobs_may_wait_for_other_work_done_ahead():
    inner = prefetch((partial(slow_square, n) for n in range(20)), 2, 2)
    assert list(prefetch((partial(slow_square, n) for n in inner), 2, 2)) == [n**4 for n in range(20)]
