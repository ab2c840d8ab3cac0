"""embed.json: which bags and which encoder the caches of a folder come from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cytomil.bags.manifest import MANIFEST_NAME, BagRow, read_manifest
from cytomil.cards import Card, Text, read_card
from cytomil.errors import FeatureFileError
from cytomil.features.index import INDEX_NAME, FeatureIndex, IndexRow
from cytomil.files import relative_path, write_json_card

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
    """One sentence per bag whose row in features.csv is not that of bags.csv. None if bags.csv is no longer there.

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
    """Raise `FeatureFileError` if features.csv contradicts the bags.csv that it was made from, if that is still there."""
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
