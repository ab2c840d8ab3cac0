"""Labels that a person gave to some cells of evaluated bags, in a table or in a GeoJSON file of one slide.

Only `evaluate` reads them with this module. Training cannot import it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cytomil.bags.bag_file import UNKNOWN, Bag
from cytomil.errors import TableError
from cytomil.files import sha256_of_file
from cytomil.geojson import read_objects
from cytomil.mil.bags import VERDICTS
from cytomil.progress import Problem
from cytomil.tables import Column, Row, read_table

MIN_LABELLED = 10
"""Min number of labelled cells of a bag. With fewer, the bag has no cell metrics."""
_CODES = VERDICTS | {"unsure": UNKNOWN}
_COLUMNS = (
    Column("slide", required=True),
    Column("instance_id"),
    Column("x"),
    Column("y"),
    Column("verdict", required=True),
)
_GEOJSON = (".geojson", ".json")
_CELL_ID = re.compile(r"x(-?\d+)y(-?\d+)")
_MAX_NAMED = 5


@dataclass(frozen=True)
class GivenLabel:
    """A label of one cell.

    Args:
        where: the name of the cell in the file, for messages.
        cell: its id; empty if only its position is known.
        position: its centre (x, y) in level-0 px from the corner of the slide's picture; None if only its id is known.
        code: 1 abnormal, 0 not abnormal, -1 unsure.
    """

    where: str
    cell: str
    position: tuple[float, float] | None
    code: int


@dataclass(frozen=True)
class CellLabels:
    """The labels of a file: slide → labels. ``sha256`` is the file's."""

    path: Path
    sha256: str
    of_slide: dict[str, list[GivenLabel]]

    def of_bag(self, bag: Bag, problems: list[Problem]) -> np.ndarray | None:
        """The labels of a bag's cells, int8 (N,): 1 abnormal, 0 not abnormal, -1 not labelled. None if there are too few.

        A label belongs to the cell with its id, or to the nearest cell if its position is within the expected cell radius.
        Labels that match no cell, and contradictory labels of one cell, are added to ``problems``. A slide may be named with
        or without the suffix of its file.
        """
        bag_id = bag.info.bag_id
        slides = [bag_id] if bag_id in self.of_slide else [one for one in self.of_slide if _is_name_of(one, bag_id)]
        given = [one for slide in slides for one in self.of_slide[slide]]
        if not given:
            return None
        index = _CellIndex(bag)
        codes: dict[int, int] = {}
        unmatched, contradicted = [], set()
        for one in given:
            cell = index.find(one)
            if cell is None:
                unmatched.append(one.where)
            elif codes.setdefault(cell, one.code) != one.code:
                contradicted.add(cell)
        if unmatched:
            why = (
                ""
                if index.has_positions
                else ". The positions of its cells are unknown: give the instance_id of each label"
            )
            problems.append(
                Problem(bag_id, f"{_list_names(unmatched, 'label')} of {self.path} match none of its cells{why}")
            )
        if contradicted:
            names = [bag.instance_ids[i] for i in sorted(contradicted)]
            problems.append(
                Problem(bag_id, f"{_list_names(names, 'cell')} with contradictory labels in {self.path}: not used")
            )
        labels = np.full(len(bag), UNKNOWN, np.int8)
        for cell in codes.keys() - contradicted:
            labels[cell] = codes[cell]
        return self._require_enough(bag, labels, problems)

    def _require_enough(self, bag: Bag, labels: np.ndarray, problems: list[Problem]) -> np.ndarray | None:
        n, n_abnormal = int((labels != UNKNOWN).sum()), int((labels == 1).sum())
        reason = ""
        if bag.info.label == 0:
            reason = f"its label is 0, but {n_abnormal} of its cells are labelled abnormal" if n_abnormal else ""
        elif n < MIN_LABELLED:
            reason = f"only {n} of its cells are labelled, at least {MIN_LABELLED} are needed: no cell metrics"
        elif n_abnormal in (0, n):
            reason = f"all {n} labelled cells are {'abnormal' if n_abnormal else 'normal'}: no cell metrics"
        if reason:
            problems.append(Problem(bag.info.bag_id, reason))
            return None
        return labels

    def without_bag(self, bag_ids: Iterable[str]) -> dict[str, int]:
        """The slides in the file that match none of these bags, with the number of their labels.

        Raises `TableError` if a slide's name matches two bags.
        """
        known = set(bag_ids)
        found = {}
        for slide, given in self.of_slide.items():
            bags = sorted(bag for bag in known if _is_name_of(slide, bag))
            if len(bags) > 1:
                raise TableError(
                    f"{self.path}: slide '{slide}' matches the bags {' and '.join(bags)}. Give them different names."
                )
            if not bags:
                found[slide] = len(given)
        return found


def _is_name_of(slide: str, bag_id: str) -> bool:
    """Whether both names are the same, or one is the other with a file's suffix."""
    if slide == bag_id:
        return True
    longer, shorter = sorted((Path(slide), Path(bag_id)), key=lambda path: len(path.name), reverse=True)
    return longer.stem == str(shorter) and not longer.suffix[1:].isdigit()


def read_cell_labels(path: Path) -> CellLabels:
    """Read a table or a GeoJSON file.

    A table has the columns slide, verdict and instance_id, as `cytomil feedback` writes them, or x and y instead of
    instance_id. A GeoJSON file is named after its slide, as `cytomil rank` names it. `ClassifiedObject.verdict` says
    which classes are labels. Other objects are ignored.

    Raises:
        NotFoundError: the file is missing.
        TableError: it is neither a table nor GeoJSON, a verdict is unknown, or a line names no cell.
    """
    of_slide: dict[str, list[GivenLabel]] = defaultdict(list)
    if path.suffix.lower() in _GEOJSON:
        for one in read_objects(path):
            if one.verdict is not None:
                x, y = (float(value) for value in one.centre)
                of_slide[path.stem].append(GivenLabel(f"({x:.0f}, {y:.0f})", "", (x, y), _CODES[one.verdict]))
        if not of_slide:
            raise TableError(f"{path} has no object whose class is one of {', '.join(_CODES)}.")
    else:
        for row in read_table(path, _COLUMNS, "cytomil feedback"):
            of_slide[row["slide"]].append(_given(row))
    return CellLabels(path, sha256_of_file(path), dict(of_slide))


def _given(row: Row) -> GivenLabel:
    verdict = row["verdict"].lower()
    if verdict not in _CODES:
        raise TableError(f"{row.where}: '{row['verdict']}' is not one of {', '.join(_CODES)}.")
    if row["instance_id"]:
        return GivenLabel(row["instance_id"], row["instance_id"], None, _CODES[verdict])
    try:
        position = float(row["x"]), float(row["y"])
    except ValueError:
        position = np.nan, np.nan
    if not np.isfinite(position).all():
        raise TableError(f"{row.where}: give the cell's instance_id, or its centre as numbers x and y.")
    return GivenLabel(f"({row['x']}, {row['y']})", "", position, _CODES[verdict])


class _CellIndex:
    """Finds the cells of a bag by id, or by position if the bag was made from a whole slide."""

    def __init__(self, bag: Bag) -> None:
        self._index = {name: i for i, name in enumerate(bag.instance_ids)}
        found = [_CELL_ID.fullmatch(name) for name in self._index]
        cutting = bag.info.cutting
        self._tree = None
        if cutting is None or not all(found):
            return
        from scipy.spatial import cKDTree

        centres = np.array([[float(number) for number in one.groups()] for one in found if one])
        # A crop's corner is half a crop from the centre, and farther away if the slide has a `Slide.origin`.
        across, down = (centres - bag.coords).mean(axis=0)
        if abs(across - down) <= 1 and across > 0:
            self._tree = cKDTree(centres)
            # The centres of touching cells are two radii apart.
            self._radius = (across + down) / cutting.crop_um * cutting.diameter_um / 2

    @property
    def has_positions(self) -> bool:
        """Whether cells can be found by position."""
        return self._tree is not None

    def find(self, label: GivenLabel) -> int | None:
        """The index of the cell in its bag; None if no cell matches."""
        if label.cell or label.position is None:
            return self._index.get(label.cell)
        if self._tree is None:
            return None
        distance, nearest = self._tree.query(label.position)
        return int(nearest) if distance <= self._radius else None


def _list_names(names: Sequence[str], what: str) -> str:
    """`3 labels (a, b, c)`; at most `_MAX_NAMED` names."""
    shown = ", ".join(names[:_MAX_NAMED]) + (", …" if len(names) > _MAX_NAMED else "")
    return f"{len(names)} {what}{'s' * (len(names) != 1)} ({shown})"
