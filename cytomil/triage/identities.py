"""The user's information on slides: patients, accession numbers and pseudonyms."""

from __future__ import annotations

import base64
import csv
import hmac
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cytomil.bags.patients import PATIENT
from cytomil.errors import SettingsError, TableError
from cytomil.files import read_json, replacing
from cytomil.slides.resolution import SLIDE
from cytomil.tables import Column, composed, csv_text, read_table, require_one_spelling
from cytomil.text import from_text_cell, printable
from cytomil.triage.sources import SlideEntry
from cytomil.triage.worklist import Call, Patient, PatientSlides, SlideResult
from cytomil.triage.write import WORKLIST_NAME

_ACCESSION = Column("accession", ("accession_number", "accession_no", "accessionnumber"), ("case_number", "order"))
_PATIENT_COLUMNS = (SLIDE, Column(PATIENT.name, PATIENT.aliases, PATIENT.hints, required=True), _ACCESSION)


@dataclass(frozen=True)
class PatientTable:
    """``by_slide``: name of a slide, with or without suffix → its patient."""

    by_slide: Mapping[str, Patient]

    def of(self, slide: str) -> Patient | None:
        """The patient of the slide that the worklist calls ``slide``; None if the table has no such slide."""
        return self.by_slide.get(composed(slide), self.by_slide.get(composed(Path(slide).stem)))

    def unknown(self, slides: Sequence[str]) -> list[str]:
        """The table's slides that are not among ``slides``."""
        names = {composed(name) for slide in slides for name in (slide, Path(slide).stem)}
        return sorted(self.by_slide.keys() - names)


def read_patients(path: Path) -> PatientTable:
    """Read a table with the columns slide, patient and, optionally, accession. Lines without a patient are passed over.

    Raises:
        NotFoundError: there is no such file.
        TableError: the table cannot be read, a slide is listed twice or without a name, or a patient has two spellings.
    """
    rows = read_table(path, _PATIENT_COLUMNS, "a spreadsheet: columns slide, patient, accession")
    given: dict[str, Patient] = {}
    listed: set[str] = set()
    for row in rows:
        if not row["slide"]:
            raise TableError(f"{row.where}: the slide's name is empty.")
        if row["slide"] in listed:
            raise TableError(f"{row.where}: slide '{row['slide']}' is listed twice. Keep one line.")
        listed.add(row["slide"])
        if row["patient"]:
            given[row["slide"]] = Patient(printable(row["patient"]), printable(row["accession"]))
    require_one_spelling(((row["patient"], row.where) for row in rows), "patient")
    return PatientTable(given)


def group(slides: Sequence[SlideResult], table: PatientTable) -> tuple[PatientSlides, ...]:
    """The patients of ``slides``, which are in reading order. The patient with the most urgent slide comes first.

    A slide that was not assessed decides on a patient's place only if none of the patient's slides was assessed.
    """
    found: dict[str, list[SlideResult]] = {}
    accessions: dict[str, dict[str, str]] = {}
    for slide in slides:
        if patient := table.of(slide.slide):
            found.setdefault(patient.name, []).append(slide)
            accessions.setdefault(patient.name, {})[slide.slide] = patient.accession
    place = {slide.slide: number for number, slide in enumerate(slides)}
    grouped = []
    for name, own in found.items():
        assessed = [slide for slide in own if slide.call is not Call.NOT_ASSESSED]
        top = (assessed or own)[0]
        order = tuple(slide.slide for slide in own)
        grouped.append(
            (place[top.slide], PatientSlides(name, order, accessions[name], top.call, len(own) - len(assessed)))
        )
    return tuple(patient for _, patient in sorted(grouped, key=lambda one: one[0]))


HIDDEN_FOLDER = "(pseudonymised)"
"""The name of the folder of slides in a worklist with pseudonyms."""
_PSEUDONYM_COLUMNS = ("pseudonym", "slide")
_LETTERS = 8
_KEY_BYTES = 32


def pseudonymise(found: Sequence[SlideEntry], slide_dir: Path, key_file: Path, out: Path) -> list[SlideEntry]:
    """The same slides under pseudonyms, such as S-7Q2K9DXA, which are added to the table beside the key file.

    The key file is made if it does not exist. Neither it nor the table may lie in ``out`` or among the slides.

    Raises:
        SettingsError: the key file holds no key, or lies in one of these folders; or ``out`` holds a worklist with
            names.
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
    rows = [dict(zip(_PSEUDONYM_COLUMNS, one, strict=True)) for one in sorted(known.items())]
    _write_private(path, csv_text(_PSEUDONYM_COLUMNS, rows, ("slide",)))


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read."""
    with replacing(path) as partial:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        partial.write_text(text, encoding="utf-8", newline="")
