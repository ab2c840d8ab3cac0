"""How long work reports on itself, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """One slide, bag or cell that could not be used, and why. Listed at the end of a batch, never dropped in silence."""

    where: str
    reason: str


@dataclass(frozen=True)
class Memory:
    """Bytes of memory: what a command has held at most so far, and what the machine still has to give."""

    held: int
    free: int


@dataclass(frozen=True)
class Work:
    """All that a command is about to do, and what it needs: what can be told before it is done.

    ``total`` counts it in ``unit``, a plural. The first ``warm_up`` steps are slower than the others. ``disk`` is bytes, 0
    where they are not told. ``memory`` is asked once the first steps are done. ``without_gpu``: this machine has none.
    """

    total: int
    unit: str
    warm_up: int = 0
    disk: int = 0
    memory: Callable[[], Memory] | None = None
    without_gpu: bool = False


class Count(Protocol):
    """Counts what is done of some `Work`."""

    def step(self, units: int) -> None:
        """So many units were done since the last call."""
        ...

    def skip(self, units: int) -> None:
        """So many units need no work, or failed: how long they took says nothing of the others."""
        ...


class Uncounted:
    """A count that nobody keeps."""

    def step(self, units: int) -> None:
        """Drop the number."""

    def skip(self, units: int) -> None:
        """Drop the number."""


class Listener(Protocol):
    """Who is told how far the work has come. The command line draws bars; tests and libraries stay silent."""

    def track(self, items: Iterable[T], description: str, total: int | None = None, unit: str = "") -> Iterator[T]:
        """Yield ``items`` one by one, counting them as done."""
        ...

    def whole(self, work: Work) -> AbstractContextManager[Count]:
        """Count the whole of a command's work; what is tracked meanwhile is part of it."""
        ...

    def note(self, message: str) -> None:
        """Say one line of plain text."""
        ...


class Silent:
    """A listener that says nothing."""

    def track(self, items: Iterable[T], description: str, total: int | None = None, unit: str = "") -> Iterator[T]:
        """Yield ``items`` unchanged."""
        yield from items

    def whole(self, work: Work) -> AbstractContextManager[Count]:
        """Count nothing."""
        return nullcontext(Uncounted())

    def note(self, message: str) -> None:
        """Drop the message."""
