"""Output for people, on standard error: progress, estimates of time and memory, tables and warnings."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from cytomil.errors import CytomilError, EndedElsewhereError
from cytomil.full_disk import is_full
from cytomil.progress import Count, Forecast, Pace, Problem, Work
from cytomil.text import printable

_COLUMNS = 80
_WORTH_TELLING_S = 20
_WORTH_A_GPU_S = 600
_NO_GPU = "No GPU was found. One is used automatically; docs/benchmarks.md has its gain."
# The largest first. A duration is given in the first unit of which it has two or more.
_UNITS = (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1))


def forecast_lines(work: Work, expected: Forecast) -> list[str]:
    """Lines of 80 columns or less; none if less than some twenty seconds are left."""
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
    """The number per second if it is one or more, else the time per unit."""
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


T = TypeVar("T")
SOME_LEFT_OUT = 3
_INTERRUPTED = 130
_MAX_PROBLEMS = 20


class _Screen(Console):
    """Prints plain strings literally, without markup and without control characters from file names."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(_shown(one) if isinstance(one, str) else one for one in objects), **options)


def _shown(text: object) -> str:
    return "\n".join(map(printable, str(text).split("\n")))


console = _Screen(stderr=True, highlight=False, markup=False)


@contextmanager
def plain_errors(kept: str = "Nothing was changed.") -> Iterator[None]:
    """Turn the exceptions a user can meet into one line and an exit status; ``kept`` describes what an interruption leaves."""
    try:
        yield
    except CytomilError as error:
        _fail(str(error), 1)
    except EndedElsewhereError:
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        _fail(f"interrupted. {kept}", _INTERRUPTED)
    except (PermissionError, FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        _fail(f"{error.filename}: {error.strerror}. Check the path and its permissions.", 1)
    except OSError as error:
        cure = " Free space on its disk, or name another output folder." if is_full(error) else ""
        _fail(f"{error.filename or 'disk'}: {error.strerror or error}.{cure}", 1)


def _fail(message: str, status: int) -> None:
    console.print(Text("error: ", style="bold red") + Text(_shown(message)), soft_wrap=True)
    raise typer.Exit(status)


class RichListener:
    """Draws one bar per running task, with rate and time left. Estimates how long the whole command will take.

    ``clock`` gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._progress: Progress | None = None
        self._open = 0
        self._in_whole = False

    def track(self, items: Iterable[T], description: str, total: int | None = None, unit: str = "") -> Iterator[T]:
        """Yield ``items``, advancing a bar that goes away when they are done."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        with self._bar(description, total, unit) as (progress, task):
            for item in items:
                yield item
                progress.advance(task)

    @contextmanager
    def whole(self, work: Work) -> Iterator[Count]:
        """Draw the bar of the whole command, and estimate its time after the first steps."""
        pace = Pace(work.total, self._clock(), work.warm_up)
        self._in_whole = True
        try:
            with self._bar("in all", work.total, work.unit, lambda: pace.left(self._clock())) as (progress, task):
                yield _Count(work, pace, self._clock, self.note, lambda units: progress.advance(task, units))
        finally:
            self._in_whole = False

    def note(self, message: str) -> None:
        """Print one line above the bars."""
        console.print(Text(_shown(message), style="dim"), soft_wrap=True)

    @contextmanager
    def _bar(
        self, description: str, total: int | None, unit: str, left: Callable[[], float] | None = None
    ) -> Iterator[tuple[Progress, TaskID]]:
        progress = self._start()
        task = progress.add_task(escape(_shown(description)), total=total, unit=unit, left=left)
        try:
            yield progress, task
        finally:
            self._open -= 1
            if self._open == 0:
                progress.stop()
                self._progress = None
            else:
                progress.remove_task(task)

    def _start(self) -> Progress:
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                _Rate(),
                _Left(lambda: self._in_whole),
                console=console,
                transient=True,
                disable=not console.is_terminal,
            )
            self._progress.start()
        self._open += 1
        return self._progress


class _Count:
    """Counts on a bar, and prints once how long the whole command will take."""

    def __init__(
        self,
        work: Work,
        pace: Pace,
        clock: Callable[[], float],
        note: Callable[[str], None],
        advance: Callable[[int], None],
    ) -> None:
        self._work, self._pace, self._clock, self._note, self._advance = work, pace, clock, note, advance
        self._is_told = False

    def step(self, units: int) -> None:
        self._pace.step(units, self._clock())
        self._advance(units)
        expected = None if self._is_told else self._pace.forecast()
        if expected is not None:
            self._is_told = True
            for line in forecast_lines(self._work, expected):
                self._note(line)

    def skip(self, units: int) -> None:
        self._pace.skip(units, self._clock())
        self._advance(units)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.3g} {task.fields.get('unit', '')}/s" if speed else "")


class _Left(TimeRemainingColumn):
    """The time left of the whole command if it has a bar, else of each task.

    Rich measures the pace over half a minute, in which a slide may not end. The whole command is measured separately.
    """

    def __init__(self, in_whole: Callable[[], bool]) -> None:
        super().__init__(compact=True)
        self._in_whole = in_whole

    def render(self, task: Task) -> Text:
        if task.fields["left"] is None:
            return Text("") if self._in_whole() else Text("left ") + super().render(task)
        left = task.fields["left"]()
        return Text("" if math.isnan(left) else f"about {duration(left)} left", style="progress.remaining")


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], right: Sequence[str] = ()) -> None:
    """A table that fits 80 columns; ``right`` names the right-aligned columns."""
    table = Table(title=_shown(title), title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(_shown(cell)) for cell in row))
    console.print(table)


def print_warning(title: str, message: str) -> None:
    """A conspicuous box."""
    console.print(Panel(Text(_shown(message)), title=Text(title), border_style="bold red", title_align="left"))


def finish(document: dict[str, Any], problems: Sequence[Problem], as_json: bool, accept_left_out: bool = False) -> None:
    """List what had to be left out, print the JSON document if requested, and set the exit status.

    With ``accept_left_out`` a run that had to leave some out counts as done, so that a pipeline goes on.
    """
    if problems:
        shown = [(problem.where, problem.reason) for problem in problems[:_MAX_PROBLEMS]]
        print_table(f"{len(problems)} could not be used", ("which", "why"), shown)
        if len(problems) > _MAX_PROBLEMS:
            console.print(f"… and {len(problems) - _MAX_PROBLEMS} more; --json lists all of them.")
    if as_json:
        listed = [{"which": problem.where, "why": problem.reason} for problem in problems]
        # In ASCII, which every encoding of a terminal contains.
        try:
            sys.stdout.write(json.dumps(document | {"left_out": listed}, indent=2, default=str) + "\n")
            sys.stdout.flush()
        except OSError as error:
            _fail(f"standard output cannot be written ({error.strerror or error}). All other output is complete.", 1)
    if problems and not accept_left_out:
        raise typer.Exit(SOME_LEFT_OUT)
