"""Keyword arguments as settings, and who is told how far the work has come."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from cytomil.config import Config, own_config
from cytomil.progress import Count, Listener, Silent, Work

Model = TypeVar("Model", bound=Config)
T = TypeVar("T")

_SECONDS_BETWEEN = 5.0


def configured(function: str, model: type[Model], settings: Mapping[str, Any], chosen_by: str = "") -> Model:
    """The configuration that the keyword arguments of ``function`` describe.

    Args:
        function: the name shown in the error.
        model: the configuration.
        settings: its fields.
        chosen_by: the field that names a method or an aggregator. Keywords that are no fields of ``model`` are then
            settings of its own, which the function that trains or fits checks.

    Raises:
        SettingsError: one line, if a setting is unknown or a value is not allowed.
    """
    given = dict(settings)
    if chosen_by and "options" in model.model_fields:
        own = {key: given.pop(key) for key in list(given) if key not in model.model_fields}
        if own:
            name = str(given.get(chosen_by, model.model_fields[chosen_by].default))
            options = dict(given.get("options") or {})
            given["options"] = options | {name: dict(options.get(name) or {}) | own}
    return cast(Model, own_config("function", function, model, {function: given}))


def listener_for(progress: bool) -> Listener:
    """Who is told how far the work has come: nobody, or whoever reads standard error."""
    return Printed() if progress else Silent()


class Printed:
    """Prints plain lines to standard error, for one task at most one in five seconds. A notebook shows them too."""

    def track(self, items: Iterable[T], description: str, total: int | None = None, unit: str = "") -> Iterator[T]:
        """Yield ``items``, and count them now and then."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        tell = _counter(f"{description}: ", total, unit)
        for item in items:
            yield item
            tell(1)

    @contextmanager
    def whole(self, work: Work) -> Iterator[Count]:
        """Count the whole of the work."""
        yield _Counted(_counter("in all: ", work.total, work.unit))

    def note(self, message: str) -> None:
        """Print one line."""
        print(message, file=sys.stderr, flush=True)


class _Counted:
    def __init__(self, tell: Callable[[int], None]) -> None:
        self._tell = tell

    def step(self, units: int) -> None:
        self._tell(units)

    def skip(self, units: int) -> None:
        self._tell(units)


def _counter(prefix: str, total: int | None, unit: str) -> Callable[[int], None]:
    done, due = 0, time.monotonic() + _SECONDS_BETWEEN

    def tell(units: int) -> None:
        nonlocal done, due
        done += units
        if time.monotonic() >= due or done == total:
            of = "" if total is None else f" of {total:,}"
            print(f"{prefix}{done:,}{of} {unit}".rstrip(), file=sys.stderr, flush=True)
            due = time.monotonic() + _SECONDS_BETWEEN

    return tell
