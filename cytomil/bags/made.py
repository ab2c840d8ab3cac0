"""The output of make-bags: names of its files and folders, and its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cytomil.bags.manifest import BagRow
from cytomil.progress import Problem

RECORD_NAME = "make-bags.json"
QC_FOLDER = "qc"
CARDS_FOLDER = "made-from"


@dataclass(frozen=True)
class MadeBags:
    """The bags that make-bags wrote, the files it left out, and its messages."""

    folder: Path
    rows: tuple[BagRow, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()
