"""Checks of reports and of worklists."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cytomil.chained_log import ChainedLog
from cytomil.evaluation.record import RECORD_NAME
from cytomil.files import read_json, sha256_of_file
from cytomil.review.log import ReviewLog
from cytomil.text import is_inside
from cytomil.triage.audit import AuditLog
from cytomil.triage.rank import CACHE_FOLDER
from cytomil.triage.whole_slide import kept_cells
from cytomil.triage.write import FILES_KEY, WORKLIST_NAME
from cytomil.validation.write import FILES_KEY as VALIDATION_FILES_KEY
from cytomil.validation.write import RECORD_NAME as VALIDATION_NAME
from cytomil.verification.checked import Checked, has_seal, sealed_json


def check_reports(folder: Path) -> Iterator[Checked]:
    """evaluate.json, and the files that were written with it."""
    yield from _record_with_files(folder, RECORD_NAME, "files", "cytomil evaluate")


def check_worklist(folder: Path) -> Iterator[Checked]:
    """triage.json, the files that were written with it, finished slides, and the logs of rank and of the review."""
    yield from _record_with_files(folder, WORKLIST_NAME, FILES_KEY, "cytomil rank")
    for card in sorted((folder / CACHE_FOLDER).glob("*.json")):
        yield sealed_json(card, "cytomil rank")
    for cells in sorted((folder / CACHE_FOLDER).glob("*.cells.npz")):
        yield Checked(cells, "" if kept_cells(cells) else "is damaged. Delete it; the next run finds the cells again.")
    logs: tuple[ChainedLog[Any], ...] = (AuditLog(folder), ReviewLog(folder))
    for log in logs:
        if log.path.is_file():
            yield Checked(log.path)
            for fault in log.faults():
                yield Checked(log.path, f"{fault.removeprefix(f'{log.path}')}. Restore it from a backup.".lstrip(":, "))


def check_validation(folder: Path) -> Iterator[Checked]:
    """validation.json, and the page and pictures that were written with it."""
    yield from _record_with_files(folder, VALIDATION_NAME, VALIDATION_FILES_KEY, "cytomil validate")


def _record_with_files(folder: Path, name: str, key: str, made_by: str) -> Iterator[Checked]:
    file = folder / name
    if not has_seal(file, key):
        return  # an earlier version wrote it
    found = sealed_json(file, made_by)
    yield found
    if found.fault:
        return
    for path, sha256 in read_json(file).get(key, {}).items():
        written = folder / path
        same = is_inside(path) and written.is_file() and sha256_of_file(written) == sha256
        yield Checked(written, "" if same else f"is not the file that was written with {name}. Run `{made_by}` again.")
