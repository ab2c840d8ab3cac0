"""features.csv and embed.json: the caches of a folder, their labels and patients, and what they were made from."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cytomil.bags.manifest import MANIFEST_NAME, BagRow, read_manifest
from cytomil.cards import Card, Text, read_card
from cytomil.errors import FeatureFileError, require_file
from cytomil.features.cache import Features, open_features
from cytomil.files import relative_path, sha256_of_json, write_json_card, write_text
from cytomil.tables import csv_text
from cytomil.text import from_text_cell, is_inside

SCHEMA = "cytomil.embed/1"
RECORD_NAME = "embed.json"


class EmbedRecord(Card):
    """The content of embed.json. ``bags`` and ``encoder`` are paths relative to its folder, "" on another drive."""

    bags: Text
    encoder: Text
    encoder_sha256: Text


def write_embed_record(folder: Path, bags: Path, encoder: Path, encoder_sha256: str) -> None:
    """Write embed.json."""
    places = {"bags": relative_path(bags, folder), "encoder": relative_path(encoder, folder)}
    write_json_card(folder / RECORD_NAME, {"schema": SCHEMA, **places, "encoder_sha256": encoder_sha256})


def read_embed_record(folder: Path) -> EmbedRecord | None:
    """Read embed.json. None for features of a version without it. Raises `FeatureFileError` if it is damaged."""
    path = folder / RECORD_NAME
    return read_card(path, EmbedRecord, SCHEMA, FeatureFileError, "cytomil embed") if path.is_file() else None


def contradictions(index: FeatureIndex) -> Iterator[str]:
    """One sentence per bag whose row in features.csv is not that of bags.csv. There are none if bags.csv no longer exists.

    Raises `FeatureFileError` or `BagFileError` if embed.json or bags.csv is damaged.
    """
    record = read_embed_record(index.folder)
    folder = index.folder / record.bags if record and record.bags else None
    if folder is None or not (folder / MANIFEST_NAME).is_file():
        return
    listed = {row.bag_id: row for row in read_manifest(folder).rows}
    for row in index.rows:
        other = listed.get(row.bag_id)
        differing = _differing(row, other) if other else ["name"]
        if differing:
            yield (
                f"bag '{row.bag_id}' of {index.folder / INDEX_NAME} is not the one in {folder.resolve() / MANIFEST_NAME}: "
                f"{', '.join(differing)} differ. Run `cytomil embed` again."
            )


def require_agreement(index: FeatureIndex) -> None:
    """Raise `FeatureFileError` if features.csv contradicts the bags.csv that it was made from, if that file still exists."""
    for contradiction in contradictions(index):
        raise FeatureFileError(contradiction)


def _differing(row: IndexRow, other: BagRow) -> list[str]:
    pairs = {
        "content": (row.bag_sha256, other.sha256),
        "label": (row.label, other.label),
        "split": (row.split, other.split),
        "patient": (row.patient_id, other.patient_id),
    }
    return [name for name, (one, another) in pairs.items() if one != another]


INDEX_NAME = "features.csv"
_NAMES = ("bag_id", "path", "patient_id")
_CHECKSUM = "checksum"


@dataclass(frozen=True)
class IndexRow:
    """One cache. ``path`` is relative to the folder. ``patient_id`` is empty if unknown."""

    bag_id: str
    path: str
    patient_id: str
    split: str
    label: int
    n_instances: int
    bag_sha256: str

    def checksum(self, n_rows: int) -> str:
        """The checksum of the row in a file of ``n_rows`` rows."""
        return sha256_of_json([asdict(self), n_rows])[:16]


@dataclass(frozen=True)
class FeatureIndex:
    """The caches of a folder."""

    folder: Path
    rows: tuple[IndexRow, ...]

    def open(self, split: str) -> list[tuple[IndexRow, Features]]:
        """Open and validate the caches of one split (or ``all``).

        Raises:
            FeatureFileError: there are no caches, one is damaged, does not match its row or holds no cells, or they were
                made by different encoders.
        """
        rows = [row for row in self.rows if split in ("all", row.split)]
        if not rows:
            raise FeatureFileError(
                f"{self.folder} has no features of split '{split}'. Run `cytomil embed` on these bags. If bags.csv has none "
                "of this split, see make-bags.json for what was left out."
            )
        opened = [(row, self.open_row(row)) for row in rows]
        first = opened[0][1]
        for row, features in opened:
            if _made_by(features) != _made_by(first):
                raise FeatureFileError(
                    f"{self.folder}: encoder, layer, engine or number of orientations differ between {row.path} and "
                    f"{rows[0].path}. Run `cytomil embed` again."
                )
            if len(features) == 0:
                raise FeatureFileError(f"{self.folder / row.path} holds no cells. Remove this bag, or embed it again.")
        return opened

    def open_row(self, row: IndexRow) -> Features:
        """Open the cache of a row. Raises `FeatureFileError` if it is damaged or does not match its row."""
        features = open_features(self.folder / row.path)
        listed = (row.bag_id, row.bag_sha256, row.n_instances)
        if (features.bag_id, features.key.bag_sha256, len(features)) != listed:
            raise FeatureFileError(
                f"{self.folder / row.path} does not match its row in {INDEX_NAME}: `cytomil embed` was interrupted, or "
                "ran twice at once in this folder. Run `cytomil embed` again."
            )
        return features


def _made_by(features: Features) -> tuple[str, ...]:
    key = features.key
    return key.encoder_sha256, key.layer, key.transform_sha256, key.engine, key.orientations


def write_index(index: FeatureIndex) -> None:
    """Write features.csv."""
    write_text(index.folder / INDEX_NAME, index_text(index.rows))


def index_text(rows: Sequence[IndexRow]) -> str:
    """The content of features.csv."""
    columns = [*(field.name for field in fields(IndexRow)), _CHECKSUM]
    return csv_text(columns, (asdict(row) | {_CHECKSUM: row.checksum(len(rows))} for row in rows), _NAMES)


def read_index(folder: Path) -> FeatureIndex:
    """Read features.csv.

    Raises:
        NotFoundError: there is no features.csv.
        FeatureFileError: it is damaged, a row was edited, or a bag is listed twice.
    """
    path = require_file(folder / INDEX_NAME, "cytomil embed")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        rows = tuple(
            IndexRow(
                from_text_cell(line["bag_id"]),
                from_text_cell(line["path"]),
                from_text_cell(line["patient_id"]),
                line["split"],
                int(line["label"]),
                int(line["n_instances"]),
                line["bag_sha256"],
            )
            for line in lines
        )
        edited = [
            number
            for number, (row, line) in enumerate(zip(rows, lines, strict=True), 2)
            if row.checksum(len(rows)) != line[_CHECKSUM]
        ]
    except (UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError, AttributeError) as error:
        raise FeatureFileError(f"{path} is damaged ({error}). Make it again with `cytomil embed`.") from None
    if edited:
        raise FeatureFileError(
            f"{path}, line {edited[0]}: edited or damaged. Run `cytomil embed` again. To change a label, patient or split, "
            "correct the labels file and run `cytomil make-bags` first."
        )
    if len({row.bag_id for row in rows}) < len(rows):
        raise FeatureFileError(f"{path} lists a bag twice. Make it again with `cytomil embed`.")
    if not all(is_inside(row.path) for row in rows):
        raise FeatureFileError(f"{path} lists a file outside its folder. Make it again with `cytomil embed`.")
    return FeatureIndex(folder, rows)
