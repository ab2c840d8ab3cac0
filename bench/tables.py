"""Results of a bench, as Markdown for docs/benchmarks.md and as a JSON document."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import machine

WIDTH = 100


class SkippedError(Exception):
    """A bench cannot run here. The message names what is missing and how to get it."""


@dataclass(frozen=True)
class Table:
    """A table of text cells. Columns of numbers are right-aligned.

    Raises:
        ValueError: the rows have different lengths.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{len(row)} cells under {len(self.columns)} columns: {row}")

    @classmethod
    def of(cls, *rows: dict[str, Any]) -> Table:
        """A table with one row per dictionary. All must have the same keys in the same order."""
        columns = tuple(rows[0]) if rows else ()
        if any(tuple(row) != columns for row in rows):
            raise ValueError("the rows have different columns")
        return cls(columns, tuple(tuple(map(str, row.values())) for row in rows))

    def markdown(self) -> str:
        """The table as Markdown. Raises `ValueError` if it is wider than `WIDTH`."""
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
    """The results of a bench: ``results`` by name, for JSON, and ``parts``, paragraphs and tables for Markdown."""

    results: dict[str, Any]
    parts: tuple[str | Table, ...]

    def markdown(self) -> str:
        """Paragraphs and tables as Markdown. Paragraphs are wrapped at `WIDTH`."""
        shown = [part.markdown() if isinstance(part, Table) else textwrap.fill(part, WIDTH) for part in self.parts]
        return "\n\n".join(shown) + "\n"


def document(bench: str, measured: Measured, options: dict[str, Any]) -> dict[str, Any]:
    """The JSON document: bench, options, machine and results, without paths."""
    return {
        "schema": "cytomil.bench/1",
        "bench": bench,
        "options": {name: value for name, value in options.items() if _is_recorded(name, value)},
        "machine": machine.describe(),
        "results": measured.results,
    }


def _is_recorded(name: str, value: Any) -> bool:
    """Whether an option belongs in the document. Paths and output options do not."""
    parts = value if isinstance(value, list) else [value]
    return name not in ("json", "markdown") and not any(isinstance(part, Path) for part in parts)


def _is_number(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] in ("–", "<", "≥", "≤") or (cell[:1] == "-" and cell[1:2].isdigit())
