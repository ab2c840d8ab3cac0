"""Names from a disk as text that files and terminals can hold, and names from tables as paths."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import PurePath

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(name: str) -> str:
    """A file's name, with control characters and bytes that are not UTF-8 escaped.

    A terminal interprets control characters, and some of them reverse the order of letters.
    """
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The question that names the closest of the ``known`` words; empty if none is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"Did you mean '{close[0]}'?" if close else ""


def is_file_name(text: str) -> bool:
    """Whether ``text`` can name a file in a folder, and nothing outside of it."""
    return is_inside(text) and PurePath(text).name == text


def is_inside(text: str) -> bool:
    """Whether ``text`` is a path that stays inside the folder it is relative to."""
    path = PurePath(text)
    return bool(path.parts) and "\0" not in text and not path.anchor and ".." not in path.parts


ENCODING = "utf-8-sig"
"""With the byte order mark by which Excel recognises UTF-8. Readers that use this encoding skip it."""

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_QUOTE = "'"


def as_text_cell(name: str) -> str:
    """The name as a cell that no spreadsheet program evaluates: an apostrophe precedes it if it could be a formula."""
    return f"{_QUOTE}{name}" if name.startswith((*_FORMULA_STARTS, _QUOTE)) else name


def from_text_cell(cell: str) -> str:
    """The name that `as_text_cell` was given."""
    return cell.removeprefix(_QUOTE)
