"""bags.csv, the manifest of a folder of bags, and the other names and records of `make-bags`."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cytomil.bags.bag_file import Bag, content_sha256, open_bag
from cytomil.cards import Card, Text
from cytomil.errors import BagFileError, require_file
from cytomil.files import sha256_of_json, write_text
from cytomil.progress import Problem
from cytomil.tables import csv_text
from cytomil.text import from_text_cell, is_file_name, is_inside, printable

MANIFEST_NAME = "bags.csv"
SPLITS = ("train", "test")
_NAMES = ("bag_id", "path", "patient_id")
_CHECKSUM = "checksum"


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


_COLUMNS = tuple(field.name for field in fields(BagRow))


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


def open_unaltered(manifest: Manifest, row: BagRow) -> Bag:
    """Open the bag file of a row, as `open_listed`. Also read all cells and check them against the row's hash."""
    bag = open_listed(manifest, row)
    if content_sha256(bag) != row.sha256:
        raise BagFileError(
            f"{bag.path} is not the bag that {MANIFEST_NAME} lists (altered or replaced). Make the bags again with "
            "`cytomil make-bags`."
        )
    return bag


def fingerprint(rows: Iterable[BagRow]) -> str:
    """SHA-256 over the content of a set of bags. It does not depend on the location of the files."""
    return sha256_of_json(sorted((row.bag_id, row.sha256, row.label, row.split) for row in rows))


def witness_rate_of(manifest: Manifest) -> float | None:
    """The witness rate of the positive bags. None if it is unknown or differs between bags."""
    rates = {row.witness_rate for row in manifest.rows if row.label and row.witness_rate is not None}
    return rates.pop() if len(rates) == 1 else None


def write_manifest(folder: Path, rows: Sequence[BagRow]) -> None:
    """Write bags.csv. Raises `BagFileError` if a patient is in both splits or a bag_id occurs twice."""
    path = folder / MANIFEST_NAME
    _check(path, rows)
    write_text(path, manifest_text(rows))


def manifest_text(rows: Sequence[BagRow]) -> str:
    """The content of bags.csv. Each row has a checksum over its values and the number of rows."""
    return csv_text(
        [*_COLUMNS, _CHECKSUM], (_cells(row) | {_CHECKSUM: _checksum(row, len(rows))} for row in rows), _NAMES
    )


def _cells(row: BagRow) -> dict[str, str]:
    rate = "" if row.witness_rate is None else f"{row.witness_rate:.6g}"
    return {name: str(value) for name, value in asdict(row).items()} | {"witness_rate": rate}


def _checksum(row: BagRow, n_rows: int) -> str:
    return sha256_of_json([_cells(row), n_rows])[:16]


def read_manifest(folder: Path, made_by: str = "cytomil make-bags") -> Manifest:
    """Read and validate the bags.csv of ``folder``.

    Raises:
        NotFoundError: there is no bags.csv.
        BagFileError: a column is missing, a label is neither 0 nor 1, a split is unknown, a bag_id occurs
            twice, a patient is in both splits, or a row does not match its checksum. Tables without checksums are read.
    """
    path = require_file(folder / MANIFEST_NAME, made_by)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            header = list(reader.fieldnames or ())
            missing = [name for name in _COLUMNS if name not in header]
            if missing:
                raise BagFileError(f"{path} lacks the columns {', '.join(missing)}. Make it again with `{made_by}`.")
            # Tables from elsewhere may lack checksums and have other columns, but one of make-bags has them at its end.
            if _CHECKSUM not in header and len(header) > len(_COLUMNS) and tuple(header[: len(_COLUMNS)]) == _COLUMNS:
                raise BagFileError(f"{path}: its first line is damaged. Make it again with `{made_by}`.")
            lines = list(reader)
            rows = tuple(_parse(path, line, number) for number, line in enumerate(lines, start=2))
    except (UnicodeDecodeError, csv.Error) as error:
        raise BagFileError(f"{path} is not a CSV file in UTF-8 ({error}). Make it again with `{made_by}`.") from None
    if not rows:
        raise BagFileError(f"{path} lists no bags. Make it again with `{made_by}`.")
    _check(path, rows)
    for number, (row, line) in enumerate(zip(rows, lines, strict=True), start=2):
        if _CHECKSUM in header and line[_CHECKSUM] != _checksum(row, len(rows)):
            raise BagFileError(
                f"{path}, line {number}: edited or damaged. To change a label, patient or split, correct the labels file "
                f"and run `{made_by}` again."
            )
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
        raise BagFileError(
            f"{path}, line {number}: the number of instances is {row.n_instances}. It must be 0 or more."
        )
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
    first_of: dict[str, BagRow] = {}
    for row in rows:
        if row.bag_id in seen:
            raise BagFileError(f"{path}: bag '{row.bag_id}' is listed twice. Give every slide its own name.")
        seen.add(row.bag_id)
        first = first_of.setdefault(row.patient_id, row) if row.patient_id else row
        if first.split != row.split:
            raise BagFileError(
                f"{path}: bags '{first.bag_id}' ({first.split}) and '{row.bag_id}' ({row.split}) belong to one patient. "
                "Put all slides of a patient into one split."
            )


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


class FittedBag(Card):
    """A training bag: the ``sha256`` of its content, and the `patient_key` of its patient, "" if unknown."""

    sha256: Text
    patient: Text = ""


def patient_key(patient_id: str) -> str:
    """A hash that represents a patient, 32 hexadecimal digits; "" if the patient is unknown.

    It does not protect the id: anyone who guesses the id can compute the hash.
    """
    return hashlib.sha256(f"cytomil patient {patient_id}".encode()).hexdigest()[:32] if patient_id else ""


class Fitted:
    """Recognises the bags that a model or an encoder was fitted to."""

    def __init__(self, bags: Iterable[FittedBag]) -> None:
        bags = tuple(bags)
        self._bags = {bag.sha256 for bag in bags}
        self._patients = {bag.patient for bag in bags if bag.patient}

    def seen(self, sha256: str, patient_id: str) -> str:
        """What was used in fitting: "it" (the bag), "its patient" (only another bag of the patient), or "" (neither)."""
        if sha256 in self._bags:
            return "it"
        return "its patient" if patient_key(patient_id) in self._patients else ""
