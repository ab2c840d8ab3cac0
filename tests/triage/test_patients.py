"""Patients that the user names: their slides are shown together, and nowhere unless asked for."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from jsonschema import validate

from cytomil.errors import SettingsError, TableError
from cytomil.progress import Silent
from cytomil.triage import identities as module
from cytomil.triage.config import RankConfig
from cytomil.triage.identities import group, read_patients
from cytomil.triage.rank import rank
from cytomil.triage.report import render_report, render_summary
from cytomil.triage.worklist import Call, SlideResult, in_reading_order
from cytomil.triage.write import to_document, write_worklist
from tests.triage.test_report import NASTY, Page, worklist

SLIDES = in_reading_order(
    [
        SlideResult("a.svs", "/s/a.svs", Call.REVIEW_FIRST, 0.9),
        SlideResult("b.svs", "/s/b.svs", Call.LOW_PRIORITY, 0.1),
        SlideResult("c.svs", "/s/c.svs", Call.REVIEW, 0.5),
        SlideResult("d.svs", "/s/d.svs", Call.NOT_ASSESSED, reason="damaged"),
        SlideResult("e.svs", "/s/e.svs", Call.LOW_PRIORITY, 0.2),
        SlideResult("f.svs", "/s/f.svs", Call.LOW_PRIORITY, 0.3),
    ]
)
TABLE = f"""slide,patient,accession
a,{NASTY},=1+1
b.svs,{NASTY},
c,P-2,
d,P-2,
e,P-3,
nowhere,P-3,
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "patients.csv"
    path.write_text(TABLE, encoding="utf-8")
    return path


def test_patients_are_in_the_order_of_their_most_urgent_slide(table: Path) -> None:
    grouped = group(SLIDES, read_patients(table))
    assert [(one.patient, one.slides, one.call) for one in grouped] == [
        (NASTY, ("a.svs", "b.svs"), Call.REVIEW_FIRST),
        ("P-2", ("d.svs", "c.svs"), Call.REVIEW),
        ("P-3", ("e.svs",), Call.LOW_PRIORITY),
    ]
    assert [one.said for one in grouped] == [
        "same patient: 1 other slide, highest call: review first",
        "same patient: 1 other slide, highest call: review; 1 not assessed",
        "no other slide of this patient",
    ]
    assert read_patients(table).unknown([slide.slide for slide in SLIDES]) == ["nowhere"]


def test_report_summary_and_tables_show_them(table: Path, tmp_path: Path) -> None:
    made = worklist(*SLIDES, patients=group(SLIDES, read_patients(table)))
    html = render_report(made)
    said = "same patient: 1 other slide, highest call: review first"
    assert NASTY not in html
    assert Page(html).text.count(said) == 4
    assert f"{NASTY} , accession =1+1 ; {said}" in Page(render_summary(made, SLIDES[1])).text
    write_worklist(made, tmp_path / "out", summaries=True)
    document = json.loads((tmp_path / "out" / "triage.json").read_text(encoding="utf-8"))
    schema = json.loads((Path(module.__file__).parent / "triage.schema.json").read_text(encoding="utf-8"))
    validate(document, schema)
    assert [one["patient"] for one in document["patients"]] == [NASTY, "P-2", "P-3"]
    text = (tmp_path / "out" / "triage.csv").read_text(encoding="utf-8-sig")
    rows = {row["slide"]: row for row in csv.DictReader(io.StringIO(text))}
    assert rows["a.svs"]["same_patient"] == said
    assert not rows["a.svs"]["accession"].startswith("=")
    assert rows["f.svs"]["patient"] == ""


def test_nothing_speaks_of_patients_unless_they_are_given(tmp_path: Path) -> None:
    made = worklist(*SLIDES)
    assert "patients" not in to_document(made)
    assert "Patients" not in Page(render_report(made)).text
    write_worklist(made, tmp_path)
    assert "patient" not in (tmp_path / "triage.csv").read_text(encoding="utf-8-sig")


def test_patients_are_not_shown_beside_pseudonyms(table: Path, tmp_path: Path) -> None:
    chosen = RankConfig(patients=table, pseudonymise=tmp_path / "vault" / "key", out=tmp_path / "out")
    with pytest.raises(SettingsError, match="Leave out one"):
        rank(tmp_path, chosen, Silent())
    assert not (tmp_path / "vault").exists()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("slide,patient\na,P-1\na,P-2\n", "line 3: slide 'a' is listed twice"),
        ("slide,patient\n,P-1\n", "line 2: the slide's name is empty"),
        ("slide,patient\na,P-1\nb,p-1\n", "written 'P-1'"),
        ("slide\na\n", "patient"),
    ],
)
def test_a_faulty_table_is_one_clear_line(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "p.csv").write_text(text, encoding="utf-8")
    with pytest.raises(TableError, match=why):
        read_patients(tmp_path / "p.csv")
