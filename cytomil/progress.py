"""How long work reports on itself, without knowing who listens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """One slide, bag or cell that could not be used, and why. Listed at the end of a batch, never dropped in silence."""

    where: str
    reason: str


class Listener(Protocol):
    """Who is told how far the work has come. The command line draws bars; tests and libraries stay silent."""

    def track(self, items: Iterable[T], description: str, total: int | None = None, unit: str = "") -> Iterator[T]:
        """Yield ``items`` one by one, counting them as done."""
        ...

    def note(self, message: str) -> None:
        """Say one line of plain text."""
        ...


class Silent:
    """A listener that says nothing."""

    def track(self, items: Iterable[T], description: str, total: int | None = None, unit: str = "") -> Iterator[T]:
        """Yield ``items`` unchanged."""
        yield from items

    def note(self, message: str) -> None:
        """Drop the message."""
