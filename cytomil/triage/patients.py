"""Patients and accession numbers that the user gives for slides: a person's slides are shown together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cytomil.bags.patients import PATIENT
from cytomil.errors import TableError
from cytomil.slides.resolution import SLIDE
from cytomil.tables import Column, composed, read_table, require_one_spelling
from cytomil.text import printable
from cytomil.triage.worklist import Call, Patient, PatientSlides, SlideResult

_ACCESSION = Column("accession", ("accession_number", "accession_no", "accessionnumber"), ("case_number", "order"))
_COLUMNS = (SLIDE, Column(PATIENT.name, PATIENT.aliases, PATIENT.hints, required=True), _ACCESSION)


@dataclass(frozen=True)
class PatientTable:
    """``by_slide``: name of a slide, with or without suffix → its patient."""

    by_slide: Mapping[str, Patient]

    def of(self, slide: str) -> Patient | None:
        """The patient of the slide that the worklist calls ``slide``; None if the table does not say."""
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
    rows = read_table(path, _COLUMNS, "a spreadsheet: columns slide, patient, accession")
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
    """The patients of ``slides``, which are in reading order; first the patient whose most urgent slide comes first.

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
