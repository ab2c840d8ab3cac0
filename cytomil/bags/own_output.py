"""Recognises folders that cytomil wrote, so that they are not taken for slides."""

from __future__ import annotations

from pathlib import Path

OWN_FOLDER_MARK = ".cytomil"
"""A file that a command creates in its output folder before it writes anything else."""

_CARDS = ("triage.json", "make-bags.json", "encoder.json", "evaluate.json")
_TABLES = ("bags.csv", "features.csv")
_TABLE_START = b"bag_id,path,patient_id,split,label,n_instances"
_HEAD_BYTES = 1 << 20


def is_own_output(folder: Path) -> bool:
    """Whether cytomil wrote this folder: a worklist, bags, features or a model, finished or not."""
    return (
        (folder / OWN_FOLDER_MARK).is_file()
        or any(b'"cytomil' in _head(folder / name) for name in _CARDS)
        or any(_TABLE_START in _head(folder / name) for name in _TABLES)
    )


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError:
        return b""


def mark_own(folder: Path) -> None:
    """Create ``folder`` and mark it as output of cytomil."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OWN_FOLDER_MARK).touch()
