"""Progress, problems and time estimates of long work, independent of how they are shown."""

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
    """A slide, bag or cell that could not be used, and the reason. It is always listed at the end of a batch."""

    where: str
    reason: str


@dataclass(frozen=True)
class Memory:
    """Memory in bytes: ``held`` is the peak of a command so far, ``free`` is what the machine has left."""

    held: int
    free: int


@dataclass(frozen=True)
class Work:
    """The amount of work of a command and its needs, known before it starts.

    Args:
        total: number of units.
        unit: name of the units, in the plural.
        warm_up: number of first steps that are slower than the others.
        disk: bytes needed; 0 if unknown.
        memory: called after the first steps.
        without_gpu: the machine has no GPU.
    """

    total: int
    unit: str
    warm_up: int = 0
    disk: int = 0
    memory: Callable[[], Memory] | None = None
    without_gpu: bool = False


class Count(Protocol):
    """Counts the finished units of some `Work`."""

    def step(self, units: int) -> None:
        """Count ``units`` as done since the last call."""
        ...

    def skip(self, units: int) -> None:
        """Count ``units`` that needed no work or failed. Their time is not used for estimates."""
        ...


class Uncounted:
    """A `Count` that does nothing."""

    def step(self, units: int) -> None:
        """Do nothing."""

    def skip(self, units: int) -> None:
        """Do nothing."""


class Listener(Protocol):
    """Receives progress and notes. The command line shows progress bars; `Silent` shows nothing."""

    def track(self, items: Iterable[T], description: str, total: int | None = None, unit: str = "") -> Iterator[T]:
        """Yield ``items`` one by one, counting them as done."""
        ...

    def whole(self, work: Work) -> AbstractContextManager[Count]:
        """Count the whole work of a command. Calls of `track` meanwhile are part of it."""
        ...

    def note(self, message: str) -> None:
        """Show one line of plain text."""
        ...


class Silent:
    """A listener that shows nothing."""

    def track(self, items: Iterable[T], description: str, total: int | None = None, unit: str = "") -> Iterator[T]:
        """Yield ``items`` unchanged."""
        yield from items

    def whole(self, work: Work) -> AbstractContextManager[Count]:
        """Do not count."""
        return nullcontext(Uncounted())

    def note(self, message: str) -> None:
        """Discard the message."""


_STRETCH_S = 2.0
_STRETCHES = 3
_LONG_ENOUGH_S = 30.0


@dataclass(frozen=True)
class Stretch:
    """A timed part of the work: ``units`` ≥ 1 in ``seconds`` > 0."""

    seconds: float
    units: int


@dataclass(frozen=True)
class Forecast:
    """A range of estimates in seconds, from the fastest to the slowest timed part.

    Args:
        shortest: min total time, including the time so far.
        longest: max total time, including the time so far.
        left: max remaining time.
        fastest: min time per unit.
        slowest: max time per unit.
    """

    shortest: float
    longest: float
    left: float
    fastest: float
    slowest: float


def forecast(stretches: Sequence[Stretch], elapsed: float, left: int) -> Forecast | None:
    """The forecast of work of which ``left`` units remain after ``elapsed`` seconds.

    None if there are fewer than three stretches and less than 30 seconds of timed work.
    """
    if len(stretches) < _STRETCHES and sum(one.seconds for one in stretches) < _LONG_ENOUGH_S:
        return None
    paces = [one.seconds / one.units for one in stretches]
    fastest, slowest = min(paces), max(paces)
    return Forecast(elapsed + left * fastest, elapsed + left * slowest, left * slowest, fastest, slowest)


@dataclass
class Pace:
    """Times work of ``total`` units that began at ``began``, in seconds of any monotonic clock.

    The first ``warm_up`` steps are slower and not timed. The others are combined to stretches of at least two seconds, so
    that a short delay does not widen the range.
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
        """Count ``units`` ≥ 1 as done since the previous step."""
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
        """Count ``units`` that needed no work or failed. Their time is not used for estimates."""
        self._last = now
        self.done += units

    def forecast(self) -> Forecast | None:
        """The forecast as of the last step; see `forecast`."""
        return forecast(self.stretches, self._last - self.began, self.total - self.done)

    def left(self, now: float) -> float:
        """Remaining seconds at the mean pace so far, at least 0; NaN if nothing was timed yet."""
        units = self._units + sum(one.units for one in self.stretches)
        if not units:
            return math.nan
        seconds = self._seconds + sum(one.seconds for one in self.stretches)
        return max(0.0, (self.total - self.done) * seconds / units - (now - self._last))


def require_disk_space(needed: int, what: str, folder: Path, cure: str) -> None:
    """Raise `SettingsError` if ``needed`` bytes do not fit on the disk of ``folder``, which need not exist yet.

    ``what`` names the files, in the plural. ``cure`` is advice for the message. 5 % of the free space are reserved for
    other programs.
    """
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if needed > 0.95 * free:
        raise SettingsError(
            f"{what} need {needed / 1e6:,.0f} MB of disk; {free / 1e6:,.0f} MB are free at {folder}. "
            f"{cure}, or name another disk with --out."
        )
