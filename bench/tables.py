"""What a bench found, as Markdown for docs/benchmarks.md and as one JSON document."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import machine

WIDTH = 100


class SkippedError(Exception):
    """A bench that cannot run here; the text says what is missing and how to get it."""


@dataclass(frozen=True)
class Table:
    """Rows of cells as they are to be read. Columns of numbers are set to the right.

    Raises `ValueError` for a ragged row and, as Markdown, where a line would be wider than `WIDTH`.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{len(row)} cells under {len(self.columns)} columns: {row}")

    @classmethod
    def of(cls, *rows: dict[str, Any]) -> Table:
        """A row a dictionary, all with the same keys in the same order."""
        columns = tuple(rows[0]) if rows else ()
        if any(tuple(row) != columns for row in rows):
            raise ValueError("the rows name different columns")
        return cls(columns, tuple(tuple(map(str, row.values())) for row in rows))

    def markdown(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(self.columns))]
        right = [all(_is_number(row[i]) for row in self.rows) for i in range(len(self.columns))]
        rule = tuple(
            "-" * (width - 1) + ":" if to_the_right else "-" * width
            for width, to_the_right in zip(widths, right, strict=True)
        )
        padded = [
            "| "
            + " | ".join(
                cell.rjust(width) if to_the_right else cell.ljust(width)
                for cell, width, to_the_right in zip(line, widths, right, strict=True)
            )
            + " |"
            for line in (self.columns, rule, *self.rows)
        ]
        if len(padded[0]) > WIDTH:
            raise ValueError(f"the table is {len(padded[0])} columns wide, more than {WIDTH}: {padded[0]}")
        return "\n".join(padded)


@dataclass(frozen=True)
class Measured:
    """``results``: figures by name, for JSON. ``parts``: the section's paragraphs and tables, in order."""

    results: dict[str, Any]
    parts: tuple[str | Table, ...]

    def markdown(self) -> str:
        """Paragraphs are filled to `WIDTH`; what stands between empty lines is one."""
        shown = [part.markdown() if isinstance(part, Table) else textwrap.fill(part, WIDTH) for part in self.parts]
        return "\n\n".join(shown) + "\n"


def document(bench: str, measured: Measured, options: dict[str, Any]) -> dict[str, Any]:
    """The JSON document: which bench, with which options, on what machine, with what result; no paths."""
    return {
        "schema": "cytomil.bench/1",
        "bench": bench,
        "options": {name: value for name, value in options.items() if _tells(name, value)},
        "machine": machine.facts(),
        "results": measured.results,
    }


def _tells(name: str, value: Any) -> bool:
    """Whether an option says how was measured, and not where files lie."""
    parts = value if isinstance(value, list) else [value]
    return name not in ("json", "markdown") and not any(isinstance(part, Path) for part in parts)


def _is_number(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] in ("–", "<", "≥", "≤") or (cell[:1] == "-" and cell[1:2].isdigit())
