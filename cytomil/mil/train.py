"""Fit one aggregator to bags of embeddings, and many of them side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from threading import Event
from typing import TypeVar

import torch
from torch import Tensor

from cytomil.mil.aggregators.base import Aggregator
from cytomil.mil.aggregators.registry import find_aggregator
from cytomil.mil.bags import Standardiser, TrainingBag
from cytomil.mil.config import FitMilConfig, InstanceScore
from cytomil.progress import Listener
from cytomil.threads import usable_cores

Job = TypeVar("Job")
Result = TypeVar("Result")


def training_epochs(
    bags: Sequence[TrainingBag],
    settings: FitMilConfig,
    epochs: int,
    seed: int,
    standardise: Standardiser | None = None,
) -> Iterator[tuple[Aggregator, Standardiser]]:
    """Fit the chosen aggregator to ``bags``; yields it after every epoch (once, where it has none) with its standardiser.

    ``standardise`` is that of these bags where it is known already.
    """
    standardise = standardise or Standardiser.of(bags)
    inputs = [replace(bag, standardise=standardise) for bag in bags]
    for aggregator in find_aggregator(settings.aggregator).fit(inputs, settings, epochs, seed):
        yield aggregator, standardise


def positive_probability(model: Aggregator, values: Tensor) -> float:
    """The probability of the positive class for one bag, (N, D), already standardised."""
    # Attention, where there is any, is at hand; evidence would be worked out for every instance and thrown away.
    kind = InstanceScore.ATTENTION if InstanceScore.ATTENTION in model.meaning else InstanceScore.EVIDENCE
    return model.assess(values, kind)[0]


class StoppedError(Exception):
    """Another fit failed or the user interrupted: this one need not go on."""


def fit_side_by_side(
    jobs: Sequence[Job],
    fit: Callable[[Job, Callable[[], None]], Result],
    workers: int,
    listener: Listener,
    description: str,
) -> list[Result]:
    """Run ``fit(job, check)`` for every job, ``workers`` of them at a time (0: one per core); results in the jobs' order.

    Threads, not processes: PyTorch lets go of the interpreter while it calculates, the bags lie in memory once, and
    nothing has to start up. Each works with a single PyTorch thread, so that the result is the same for any number of workers.
    A long ``fit`` calls ``check`` now and then; it raises `StoppedError` where the work has become useless.
    """
    stop = Event()

    def check() -> None:
        if stop.is_set():
            raise StoppedError

    count = min(len(jobs), workers or usable_cores())
    with one_thread(), ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = [pool.submit(fit, job, check) for job in jobs]
        try:
            for future in listener.track(as_completed(futures), description, total=len(jobs), unit="fits"):
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]


@contextmanager
def one_thread() -> Iterator[None]:
    """Run PyTorch, BLAS and OpenMP on one thread: other fits keep the cores busy, and a small bag is too little to share."""
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)
