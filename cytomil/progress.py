"""How long work reports on itself, without knowing who listens."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from cytomil.errors import SettingsError

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


_STRETCH_S = 2.0
_STRETCHES = 3
_LONG_ENOUGH_S = 30.0


@dataclass(frozen=True)
class Stretch:
    """A piece of work that was timed: ``units``, 1 or more, in ``seconds``, more than 0."""

    seconds: float
    units: int


@dataclass(frozen=True)
class Forecast:
    """A range from the fastest to the slowest of what was timed, in seconds.

    ``least`` and ``most`` are of the whole, what is done included; ``left`` is the most that is still to come;
    ``fastest`` and ``slowest`` are of one unit.
    """

    least: float
    most: float
    left: float
    fastest: float
    slowest: float


def forecast(stretches: Sequence[Stretch], elapsed: float, left: int) -> Forecast | None:
    """The forecast of work of which ``left`` units remain after ``elapsed`` seconds; None where too little was timed.

    Three stretches are enough, or thirty seconds of however few.
    """
    if len(stretches) < _STRETCHES and sum(one.seconds for one in stretches) < _LONG_ENOUGH_S:
        return None
    paces = [one.seconds / one.units for one in stretches]
    fastest, slowest = min(paces), max(paces)
    return Forecast(elapsed + left * fastest, elapsed + left * slowest, left * slowest, fastest, slowest)


@dataclass
class Pace:
    """Times work of ``total`` units that began at ``began``, in seconds of any clock that does not run backwards.

    The first ``warm_up`` steps are slower than the others, and not timed. The others are put together to stretches of two
    seconds or more, so that a hiccup of a moment makes no range.
    """

    total: int
    began: float
    warm_up: int = 0
    done: int = field(default=0, init=False)
    stretches: list[Stretch] = field(default_factory=list, init=False)
    _last: float = field(init=False)
    _seconds: float = field(default=0.0, init=False)
    _units: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._last = self.began

    def step(self, units: int, now: float) -> None:
        """Count ``units``, 1 or more, as done since the step before."""
        seconds = now - self._last
        self.skip(units, now)
        if self.warm_up:
            self.warm_up -= 1
            return
        self._seconds += seconds
        self._units += units
        if self._seconds >= _STRETCH_S:
            self.stretches.append(Stretch(self._seconds, self._units))
            self._seconds, self._units = 0.0, 0

    def skip(self, units: int, now: float) -> None:
        """Count ``units`` as done that needed no work, or failed: they say nothing of the others."""
        self._last = now
        self.done += units

    def forecast(self) -> Forecast | None:
        """The forecast as of the last step; see `forecast`."""
        return forecast(self.stretches, self._last - self.began, self.total - self.done)

    def left(self, now: float) -> float:
        """Seconds until the end by the mean pace so far, 0 or more; NaN where nothing was timed yet."""
        units = self._units + sum(one.units for one in self.stretches)
        if not units:
            return math.nan
        seconds = self._seconds + sum(one.seconds for one in self.stretches)
        return max(0.0, (self.total - self.done) * seconds / units - (now - self._last))


def require_disk_space(needed: int, what: str, folder: Path, cure: str) -> None:
    """Raise `SettingsError` if ``needed`` bytes do not fit where ``folder`` is, or will be.

    ``what``, a plural, is what needs them; ``cure`` says what else to do. A twentieth of what is free is left to others.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if needed > 0.95 * free:
        raise SettingsError(
            f"{what} need {needed / 1e9:.1f} GB of disk; {free / 1e9:.1f} GB are free at {folder}. "
            f"{cure}, or name another disk with --out."
        )
