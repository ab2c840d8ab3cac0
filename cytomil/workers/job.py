"""The interface between jobs and workers, and the workers that run in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from cytomil.progress import Listener, Silent

Item = TypeVar("Item")
Result = TypeVar("Result")
Item_contra = TypeVar("Item_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)


@dataclass(frozen=True)
class JobContext:
    """The context in which a worker starts a job.

    Args:
        listener: receives the notes of the job.
        cores: number of cores of this worker; 0: all cores of the machine.
    """

    listener: Listener
    cores: int = 0

    def threads(self, requested: int) -> int:
        """Number of threads to use. ``requested`` is the user's setting (0: one per core)."""
        return requested or self.cores


@dataclass(frozen=True)
class WorkerFailure:
    """Replaces the result of an item if too many workers failed on it. ``reason`` is one line for the user."""

    reason: str


class Job(Protocol[Item_contra, Result_co]):
    """Work on independent items. A job is pickled for another process, so it must be small."""

    @property
    def device(self) -> str:
        """The user's device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``. On Ray, a worker has its own GPU unless ``cpu``."""
        ...

    def start(self, context: JobContext) -> Callable[[Iterable[Item_contra]], Iterator[Result_co]]:
        """Load what all items need, once per worker.

        Returns:
            A function from items to results, one per item, in order. It may read ahead.

        Raises:
            CytomilError: the user made a mistake. The function may raise it too.
        """
        ...


class Workers(Protocol):
    """Runs jobs."""

    def map(
        self, job: Job[Item, Result], items: Sequence[Item], listener: Listener, description: str, unit: str
    ) -> list[Result | WorkerFailure]:
        """One result per item, in the order of the items. A `CytomilError` of the job ends it and is raised here."""
        ...


MAX_TRIES = 3
"""Number of workers that may fail on an item before it is given up."""


@dataclass(frozen=True)
class Raised:
    """An exception of a worker, to be raised in the process that called it."""

    error: Exception


class Notes(Silent):
    """Collects the notes of a job while it starts."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def note(self, message: str) -> None:
        """Keep the message."""
        self.messages.append(message)


def failure_reason(reason: str) -> str:
    """Why an item has no result, in one line for the user."""
    return f"the worker failed {MAX_TRIES} times on it ({reason})."


class InProcess:
    """Runs jobs in the calling process, with all cores of the machine."""

    def map(
        self, job: Job[Item, Result], items: Sequence[Item], listener: Listener, description: str, unit: str
    ) -> list[Result | WorkerFailure]:
        """See `Workers.map`."""
        work = job.start(JobContext(listener))
        return list(listener.track(work(items), description, len(items), unit))
