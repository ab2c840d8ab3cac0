"""What readers said of single cells of training slides: a CSV that `cytomil feedback` writes and fitting reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cytomil.errors import TableError
from cytomil.tables import Column, read_table

ABNORMAL, NOT_ABNORMAL, UNKNOWN = 1, 0, -1
VERDICTS = {"abnormal": ABNORMAL, "normal": NOT_ABNORMAL, "not a cell": NOT_ABNORMAL}
COLUMNS = ("slide", "instance_id", "verdict")


@dataclass(frozen=True)
class Feedback:
    """Readers' verdicts on cells: slide → instance id → 1 abnormal, 0 not abnormal."""

    cells: dict[str, dict[str, int]]

    def of_bag(self, bag_id: str) -> dict[str, int]:
        """The verdicts on a bag's cells. A slide's file may be named with or without its suffix."""
        found: dict[str, int] = {}
        for slide, verdicts in self.cells.items():
            if bag_id in (slide, Path(slide).stem):
                found |= verdicts
        return found

    def codes(self, bag_id: str, instance_ids: Sequence[str]) -> np.ndarray:
        """The verdict on each of a bag's cells, int8 (N,); -1 for cells that nobody judged."""
        verdicts = self.of_bag(bag_id)
        return np.array([verdicts.get(name, UNKNOWN) for name in instance_ids], np.int8)

    def tell_unused(self, bag_ids: Iterable[str], note: Callable[[str], None]) -> None:
        """Send ``note`` one line if verdicts are on slides that are none of the bags."""
        known = set(bag_ids)
        unused = [slide for slide in self.cells if not {slide, Path(slide).stem} & known]
        if unused:
            n = sum(len(self.cells[slide]) for slide in unused)
            note(f"{n} verdicts are not used, because these slides are no training bags: {', '.join(sorted(unused))}")


NO_FEEDBACK = Feedback({})


def read_feedback(path: Path) -> Feedback:
    """Read a table with the columns slide, instance_id and verdict.

    Raises:
        NotFoundError: the file is missing.
        TableError: a verdict is none of abnormal, normal and not a cell, or a cell has two.
    """
    columns = [Column(name, required=True) for name in COLUMNS]
    cells: dict[str, dict[str, int]] = {}
    for row in read_table(path, columns, "cytomil feedback"):
        verdict = row["verdict"].lower()
        if verdict not in VERDICTS:
            raise TableError(f"{row.where}: '{row['verdict']}' is not one of {', '.join(VERDICTS)}.")
        own = cells.setdefault(row["slide"], {})
        if own.setdefault(row["instance_id"], VERDICTS[verdict]) != VERDICTS[verdict]:
            raise TableError(f"{row.where}: cell {row['instance_id']} has two verdicts. Leave one line.")
    return Feedback(cells)
