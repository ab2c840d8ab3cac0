"""What workers and those who employ them agree on."""

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
class Place:
    """Where a job starts: who is told of its progress, and how many cores are its own (0: the machine's)."""

    listener: Listener
    cores: int = 0

    def threads(self, asked: int) -> int:
        """The number of threads to use, where ``asked`` is the user's (0: one per core)."""
        return asked or self.cores


@dataclass(frozen=True)
class Lost:
    """Stands for the result of an item whose worker was lost time and again; ``reason`` is one line for the user."""

    reason: str


class Job(Protocol[Item_contra, Result_co]):
    """Work on items that know nothing of each other. It is pickled on its way to another process, and small then.

    ``device`` is the user's: a worker on another machine gets a GPU of its own unless it is ``cpu``.
    """

    @property
    def device(self) -> str:
        """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
        ...

    def start(self, place: Place) -> Callable[[Iterable[Item_contra]], Iterator[Result_co]]:
        """Load what all items need, once a worker; returns what turns items into results, one each, in order.

        It may read ahead. Raises `CytomilError` for the user's mistakes, as the work itself may.
        """
        ...


class Workers(Protocol):
    """Who does a job."""

    def map(
        self, job: Job[Item, Result], items: Sequence[Item], listener: Listener, description: str, unit: str
    ) -> list[Result | Lost]:
        """One result an item, in the items' order. A `CytomilError` that the job raises ends it and is raised here."""
        ...


TRIES = 3
"""How many workers an item may cost before it is given up."""


@dataclass(frozen=True)
class Raised:
    """An exception on its way from a worker, to be raised by the process that asks."""

    error: Exception


class Notes(Silent):
    """Keeps what a job says while it starts."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        """Keep the message."""
        self.said.append(message)


def gave_up(reason: str) -> str:
    """Why an item has no result, in a line for the user."""
    return f"the worker was lost {TRIES} times while on it ({reason})."


class Here:
    """The process that asks, with all of the machine's cores."""

    def map(
        self, job: Job[Item, Result], items: Sequence[Item], listener: Listener, description: str, unit: str
    ) -> list[Result | Lost]:
        """See `Workers.map`."""
        work = job.start(Place(listener))
        return list(listener.track(work(items), description, len(items), unit))
