"""features.csv: which caches a folder holds, with their bags' labels, patients and splits."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cytomil.errors import FeatureFileError, require_file
from cytomil.features.cache import Features, open_features
from cytomil.files import write_text

INDEX_NAME = "features.csv"


@dataclass(frozen=True)
class IndexRow:
    """One cache. ``path`` is relative to the folder; an empty ``patient_id`` is unknown."""

    bag_id: str
    path: str
    patient_id: str
    split: str
    label: int
    n_instances: int


@dataclass(frozen=True)
class FeatureIndex:
    """The caches of a folder."""

    folder: Path
    rows: tuple[IndexRow, ...]

    def open(self, split: str) -> list[tuple[IndexRow, Features]]:
        """Open and validate the caches of one split (or ``all``).

        Raises `FeatureFileError` where one is damaged, there is none, or they were made by different encoders.
        """
        rows = [row for row in self.rows if split in ("all", row.split)]
        if not rows:
            raise FeatureFileError(
                f"{self.folder} has no features of split '{split}'. Run `cytomil embed` on those bags; where bags.csv "
                "has none of that split, make-bags.json beside it says what was left out."
            )
        opened = [(row, open_features(self.folder / row.path)) for row in rows]
        first = opened[0][1]
        for row, features in opened:
            if _made_by(features) != _made_by(first):
                raise FeatureFileError(
                    f"{self.folder}: {row.path} was made by another encoder, layer, engine or number of orientations than "
                    f"{rows[0].path}. Run `cytomil embed` again."
                )
            if len(features) == 0:
                raise FeatureFileError(
                    f"{self.folder / row.path} holds no cells. Leave this bag out, or embed it again."
                )
        return opened


def _made_by(features: Features) -> tuple[str, ...]:
    key = features.key
    return key.encoder_sha256, key.layer, key.transform_sha256, key.engine, key.orientations


def write_index(index: FeatureIndex) -> None:
    """Write features.csv."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [field.name for field in fields(IndexRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in index.rows)
    write_text(index.folder / INDEX_NAME, buffer.getvalue())


def read_index(folder: Path) -> FeatureIndex:
    """Read features.csv. Raises `NotFoundError` where there is none, `FeatureFileError` where it is damaged."""
    path = require_file(folder / INDEX_NAME, "cytomil embed")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        rows = tuple(
            IndexRow(
                line["bag_id"],
                line["path"],
                line["patient_id"],
                line["split"],
                int(line["label"]),
                int(line["n_instances"]),
            )
            for line in lines
        )
    except (UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise FeatureFileError(f"{path} is damaged ({error}). Make it again with `cytomil embed`.") from None
    return FeatureIndex(folder, rows)
