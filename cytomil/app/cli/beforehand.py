"""Says in words how long a command will take, and what it needs of memory and disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cytomil.progress import Forecast, Work

_COLUMNS = 80
_WORTH_TELLING_S = 20
_WORTH_A_GPU_S = 600
_NO_GPU = "No GPU was found. One is used automatically; docs/benchmarks.md has its gain."
# From the largest on; a length is told in the first unit of which it has two or more.
_UNITS = (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1))


def told_beforehand(work: Work, expected: Forecast) -> list[str]:
    """Lines of 80 columns or less; none where less than some twenty seconds are left."""
    if expected.left < _WORTH_TELLING_S:
        return []
    length = f"about {_between(expected.shortest, expected.longest)} for {work.total:,} {work.unit}"
    lines = _joined([length, _pace(expected), *_needs(work)])
    if work.without_gpu and expected.longest > _WORTH_A_GPU_S:
        lines.append(_NO_GPU)
    return lines


def _joined(parts: Sequence[str]) -> list[str]:
    """Parts with commas between them, as many on a line as fit."""
    lines = [parts[0]]
    for part in parts[1:]:
        longer = f"{lines[-1]}, {part}"
        if len(longer) <= _COLUMNS:
            lines[-1] = longer
        else:
            lines.append(part)
    return lines


def _needs(work: Work) -> Iterator[str]:
    if work.memory:
        memory = work.memory()
        yield f"{size(memory.held)} of memory ({size(memory.free)} more are free)"
    if work.disk:
        yield f"{size(work.disk)} of disk"


def duration(seconds: float) -> str:
    """Seconds, 0 or more, to two digits: "95 seconds", "13 minutes", "3.5 hours"."""
    return _with_unit(*_in_words(seconds))


def size(n_bytes: int) -> str:
    """Bytes to two digits, as MB or GB; a part of a MB is 1 MB."""
    megabytes = max(1.0, n_bytes / 1e6)
    return f"{_two_digits(megabytes / 1e3)} GB" if megabytes >= 995 else f"{_two_digits(megabytes)} MB"


def _pace(expected: Forecast) -> str:
    """So many a second where it is one or more, else so long each."""
    if expected.slowest > 1:
        return f"{_between(expected.fastest, expected.slowest)} each"
    # A step may take no time that the clock can tell.
    slow, fast = (_two_digits(1 / max(pace, 1e-6)) for pace in (expected.slowest, expected.fastest))
    return f"{slow} a second" if slow == fast else f"{slow} to {fast} a second"


def _between(least: float, most: float) -> str:
    low, high = _in_words(least), _in_words(most)
    if low == high:
        return _with_unit(*high)
    start = low[0] if low[1] == high[1] else _with_unit(*low)
    return f"{start} to {_with_unit(*high)}"


def _in_words(seconds: float) -> tuple[str, str]:
    """A number and its unit, in the singular."""
    name, length = next((unit for unit in _UNITS if seconds >= 2 * unit[1]), _UNITS[-1])
    return _two_digits(seconds / length), name


def _with_unit(number: str, unit: str) -> str:
    return f"{number} {unit}" if number == "1" else f"{number} {unit}s"


def _two_digits(number: float) -> str:
    if number >= 9.95:
        digits = len(str(int(number))) - 2
        return f"{round(number, -digits) if digits > 0 else number:,.0f}"
    return f"{number:.1f}".removesuffix(".0")
