"""How long work will take in all, from how long its first steps took. Pure: whoever uses it brings the clock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

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
