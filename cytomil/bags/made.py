"""What a run of make-bags leaves: where bags, pictures and records lie, and what it tells."""

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
    """What make-bags wrote, and what it had to leave out."""

    folder: Path
    rows: tuple[BagRow, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()
