"""Names in tables that people open with a spreadsheet program, which takes some of them for formulas."""

from __future__ import annotations

ENCODING = "utf-8-sig"
"""With the mark by which Excel knows UTF-8. pandas and csv's readers in this encoding pass over it."""

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_QUOTE = "'"


def as_text_cell(name: str) -> str:
    """The name as a cell that no spreadsheet program reckons: with an apostrophe in front where it could be a formula."""
    return f"{_QUOTE}{name}" if name.startswith((*_FORMULA_STARTS, _QUOTE)) else name


def from_text_cell(cell: str) -> str:
    """The name that `as_text_cell` was given."""
    return cell.removeprefix(_QUOTE)
