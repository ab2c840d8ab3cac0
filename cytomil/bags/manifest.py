"""bags.csv, the manifest: lists the bags of a folder with their labels, patients and splits."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cytomil.bags.bag_file import Bag, open_bag
from cytomil.errors import BagFileError, require_file
from cytomil.files import sha256_of_json, write_text
from cytomil.tables import csv_text
from cytomil.text import from_text_cell, is_file_name, is_inside, printable

MANIFEST_NAME = "bags.csv"
SPLITS = ("train", "test")
_NAMES = ("bag_id", "path", "patient_id")


@dataclass(frozen=True)
class BagRow:
    """One bag of the manifest. ``path`` is relative to the manifest's folder. ``patient_id`` is empty if unknown."""

    bag_id: str
    path: str
    patient_id: str
    split: str
    label: int
    n_instances: int
    witness_rate: float | None
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The bags of a folder. No patient is in both splits."""

    folder: Path
    rows: tuple[BagRow, ...]

    def select(self, split: str) -> tuple[BagRow, ...]:
        """The rows of one split, or all of them for ``all``."""
        return self.rows if split == "all" else tuple(row for row in self.rows if row.split == split)

    def file_of(self, row: BagRow) -> Path:
        """Path of the bag file of a row."""
        return self.folder / row.path


def open_listed(manifest: Manifest, row: BagRow) -> Bag:
    """Open the bag file of a row.

    Raises `BagFileError` if content, name, label, patient or number of cells differ between the row and the file.
    """
    path = manifest.file_of(row)
    bag = open_bag(path)
    listed = (row.sha256, row.bag_id, row.label, row.patient_id, row.n_instances)
    if (bag.sha256, bag.info.bag_id, bag.info.label, bag.info.patient_id, len(bag)) != listed:
        raise BagFileError(
            f"{path} is not the bag that {MANIFEST_NAME} lists: content, name, label, patient or number of cells differ. To "
            "change a label, correct the labels file and make the bags again with `cytomil make-bags`."
        )
    return bag


def fingerprint(rows: Iterable[BagRow]) -> str:
    """SHA-256 over the content of a set of bags. It does not depend on where the bags lie."""
    return sha256_of_json(sorted((row.bag_id, row.sha256, row.label, row.split) for row in rows))


def write_manifest(folder: Path, rows: Sequence[BagRow]) -> None:
    """Write bags.csv. Raises `BagFileError` if a patient is in both splits or a bag_id occurs twice."""
    path = folder / MANIFEST_NAME
    _check(path, rows)
    lines = (
        asdict(row) | {"witness_rate": "" if row.witness_rate is None else f"{row.witness_rate:.6g}"} for row in rows
    )
    write_text(path, csv_text([field.name for field in fields(BagRow)], lines, _NAMES))


def read_manifest(folder: Path, made_by: str = "cytomil make-bags") -> Manifest:
    """Read and validate the bags.csv of ``folder``.

    Raises:
        NotFoundError: there is no bags.csv.
        BagFileError: a column is missing, a label is neither 0 nor 1, a split is unknown, a bag_id occurs twice, or a
            patient is in both splits.
    """
    path = require_file(folder / MANIFEST_NAME, made_by)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = [field.name for field in fields(BagRow) if field.name not in (reader.fieldnames or ())]
            if missing:
                raise BagFileError(f"{path} lacks the columns {', '.join(missing)}. Make it again with `{made_by}`.")
            rows = tuple(_parse(path, line, number) for number, line in enumerate(reader, start=2))
    except (UnicodeDecodeError, csv.Error) as error:
        raise BagFileError(f"{path} is not a CSV file in UTF-8 ({error}). Make it again with `{made_by}`.") from None
    if not rows:
        raise BagFileError(f"{path} lists no bags. Make it again with `{made_by}`.")
    _check(path, rows)
    return Manifest(folder, rows)


def _parse(path: Path, line: dict[str, str], number: int) -> BagRow:
    try:
        row = BagRow(
            **{key: from_text_cell(line[key] or "") for key in _NAMES},
            split=line["split"],
            label=int(line["label"]),
            n_instances=int(line["n_instances"]),
            witness_rate=float(line["witness_rate"]) if line["witness_rate"] else None,
            sha256=line["sha256"],
        )
    except (TypeError, ValueError) as error:
        raise BagFileError(f"{path}, line {number}: {error}.") from None
    if row.label not in (0, 1):
        raise BagFileError(f"{path}, line {number}: label {row.label} is neither 0 (negative) nor 1 (positive).")
    if row.n_instances < 0:
        raise BagFileError(f"{path}, line {number}: {row.n_instances} instances is not possible.")
    if not is_file_name(row.bag_id) or not is_inside(row.path):
        raise BagFileError(
            f"{path}, line {number}: bag '{printable(row.bag_id)}' at '{printable(row.path)}' lies outside the folder. "
            "Make the bags again with `cytomil make-bags`."
        )
    if row.split not in SPLITS:
        raise BagFileError(f"{path}, line {number}: split '{row.split}' must be {' or '.join(SPLITS)}.")
    return row


def _check(path: Path, rows: Sequence[BagRow]) -> None:
    seen: set[str] = set()
    split_of: dict[str, str] = {}
    for row in rows:
        if row.bag_id in seen:
            raise BagFileError(f"{path}: bag '{row.bag_id}' is listed twice. Give every slide its own name.")
        seen.add(row.bag_id)
        other = split_of.setdefault(row.patient_id, row.split) if row.patient_id else row.split
        if other != row.split:
            raise BagFileError(
                f"{path}: patient '{row.patient_id}' is in both train and test. "
                "Put all slides of a patient into one split."
            )
