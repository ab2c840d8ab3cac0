"""Time several candidates alternately in one run, and compute ratios between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Spread:
    """Median, min and max."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Summarise the values. Raises `ValueError` if there are none."""
        if not values:
            raise ValueError("no values to take a median of")
        return cls(median(values), min(values), max(values))

    def shown(self, digits: int = 2) -> str:
        """``2.31 (2.20–2.40)``, or only the median if all three are equal to that many digits."""
        middle, low, high = (f"{value:,.{digits}f}" for value in (self.median, self.low, self.high))
        return middle if low == high else f"{middle} ({low}–{high})"


@dataclass(frozen=True)
class Timing:
    """Seconds of one candidate per round. Value i of every candidate was measured in the same round."""

    seconds: tuple[float, ...]

    @property
    def spread(self) -> Spread:
        return Spread.of(list(self.seconds))

    def per_second(self, n: float) -> Spread:
        """Rate of a candidate that processes ``n`` items per call."""
        return Spread.of([n / seconds for seconds in self.seconds])

    def per(self, n: float) -> Timing:
        """Seconds per item of a candidate that processes ``n`` items per call, to compare unequal amounts of work."""
        return Timing(tuple(seconds / n for seconds in self.seconds))

    def times_faster_than(self, other: Timing) -> Spread:
        """The other's seconds divided by these, per round.

        Ratios are computed within rounds, because other work on the machine affects both candidates of a round.

        Raises:
            ValueError: the two have different numbers of rounds.
        """
        return Spread.of([theirs / mine for mine, theirs in zip(self.seconds, other.seconds, strict=True)])


def interleaved(
    candidates: Mapping[str, Callable[[], object]],
    repeats: int = 5,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Call every candidate once per round for ``repeats`` rounds, after ``warm_up`` rounds that do not count.

    Each round starts with another candidate, so that none always runs after the one that heats up the machine.

    Raises:
        ValueError: ``repeats`` is below 1.
    """
    if repeats < 1:
        raise ValueError("at least one repeat is needed")
    names = list(candidates)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warm_up, repeats):
        first = turn % len(names) if names else 0
        for name in names[first:] + names[:first]:
            started = clock()
            candidates[name]()
            if turn >= 0:
                taken[name].append(clock() - started)
    return {name: Timing(tuple(seconds)) for name, seconds in taken.items()}
