"""What other packages add to cytomil under a name: entry points, found and loaded with one style of message."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from cytomil.errors import SettingsError

Kind = TypeVar("Kind")


def find_foreign(kind: str, group: str, name: str, own: Collection[str]) -> EntryPoint:
    """The entry point of this name that an installed package brings, not loaded yet; ``own`` are cytomil's names.

    ``kind`` is what the user calls such a thing. Raises `ValueError` naming those there are.
    """
    foreign = {found.name: found for found in entry_points(group=group)}
    if name in foreign:
        return foreign[name]
    known = [*own, *(other for other in foreign if other not in own)]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean '{close[0]}'? " if close else ""
    raise ValueError(f"there is no {kind} '{name}'. {hint}There are: {', '.join(known)}.")


def load_kind(kind: str, entry: EntryPoint, base: type[Kind]) -> type[Kind]:
    """The class that ``entry`` names. Raises `SettingsError` if it does not load, or is no subclass of ``base``."""
    try:
        found = entry.load()
    except Exception as error:  # another package's code may fail in any way
        raise SettingsError(
            f"{kind} '{entry.name}' cannot be loaded from {entry.value} ({type(error).__name__}: {error}). "
            "Repair or remove the package that brings it."
        ) from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise SettingsError(
            f"{kind} '{entry.name}': {entry.value} is not a subclass of {base.__module__}.{base.__name__}."
        )
    return found
