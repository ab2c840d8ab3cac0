"""Pseudonyms of slides: the same key file always gives a slide the same pseudonym, and only its table leads back."""

from __future__ import annotations

import base64
import csv
import hmac
import os
import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cytomil.errors import SettingsError, TableError
from cytomil.files import read_json, replacing
from cytomil.tables import csv_text
from cytomil.text import from_text_cell
from cytomil.triage.sources import Found
from cytomil.triage.write import WORKLIST_NAME

HIDDEN_FOLDER = "(pseudonymised)"
"""What such a worklist calls the folder of slides."""
_COLUMNS = ("pseudonym", "slide")
_LETTERS = 8
_KEY_BYTES = 32


def pseudonymise(found: Sequence[Found], slide_dir: Path, key_file: Path, out: Path) -> list[Found]:
    """The same slides under pseudonyms, such as S-7Q2K9DXA, which are added to the table beside the key file.

    The key file is made if it does not exist. Neither it nor the table may lie in ``out`` or among the slides.

    Raises:
        SettingsError: the key file is not one, or lies in one of these folders; or ``out`` holds a worklist with names.
        TableError: the table is damaged.
    """
    for folder in (out, slide_dir):
        if folder.resolve() in key_file.resolve().parents:
            raise SettingsError(f"{key_file} lies in {folder}. Keep the key file apart, where the reports do not go.")
    _require_no_names(out)
    key = _key(key_file)
    named = [replace(one, pseudonym=_pseudonym(key, one.real_name)) for one in found]
    _add_to_table(key_file.with_name(f"{key_file.name}.csv"), {one.pseudonym: one.real_name for one in named})
    return sorted(named, key=lambda one: one.pseudonym)


def _require_no_names(out: Path) -> None:
    try:
        folder = read_json(out / WORKLIST_NAME)["folder"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if folder != HIDDEN_FOLDER:
        raise SettingsError(f"{out} holds a worklist with the slides' names. Name another folder with --out.")


def _pseudonym(key: bytes, name: str) -> str:
    digest = hmac.digest(key, name.encode("utf-8", "surrogateescape"), "sha256")
    return f"S-{base64.b32encode(digest).decode()[:_LETTERS]}"


def _key(path: Path) -> bytes:
    if not path.exists():
        _write_private(path, f"{secrets.token_hex(_KEY_BYTES)}\n")
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii"))
    except ValueError:
        key = b""
    if len(key) < _KEY_BYTES:
        raise SettingsError(
            f"{path} is not a key file: it must hold {2 * _KEY_BYTES} hexadecimal digits. Name a new file, and it is made."
        )
    return key


def _add_to_table(path: Path, added: dict[str, str]) -> None:
    known: dict[str, str] = {}
    if path.is_file():
        try:
            with path.open(encoding="utf-8", newline="") as file:
                known = {line["pseudonym"]: from_text_cell(line["slide"]) for line in csv.DictReader(file)}
        except (UnicodeDecodeError, csv.Error, KeyError, AttributeError) as error:
            raise TableError(
                f"{path} is damaged ({error}). Move it away; the next run lists its slides again."
            ) from None
    for pseudonym, name in added.items():
        if known.setdefault(pseudonym, name) != name:
            raise SettingsError(f"two slides have the pseudonym {pseudonym}. Use another key file.")
    rows = [dict(zip(_COLUMNS, one, strict=True)) for one in sorted(known.items())]
    _write_private(path, csv_text(_COLUMNS, rows, ("slide",)))


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read."""
    with replacing(path) as partial:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        partial.write_text(text, encoding="utf-8", newline="")
