"""What a review found, and verdicts that come back from QuPath."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from cytomil.app.cli.app import app
from cytomil.errors import TableError
from cytomil.mil.bags import read_feedback
from cytomil.review.log import Action, CellVerdict, ReviewLog
from cytomil.review.slides import Triage
from cytomil.review.summary import agreements, read_classes, summarise, verdicts

SMEAR = 1


def judge(log, reader, cell, value, slide="smear.tif", rank=None):
    log.append(reader, Action.CELL, slide, cell=cell, value=value, rank=rank)


def test_precision_is_of_key_cells_and_undone_ones_do_not_count(tmp_path):
    log = ReviewLog(tmp_path)
    judge(log, "AB", "k1", "abnormal", rank=1)
    judge(log, "AB", "k2", "normal", rank=2)
    judge(log, "AB", "other", "abnormal")
    judge(log, "AB", "k3", "abnormal", rank=3)
    log.append("AB", Action.UNDO, "smear.tif", of=4)
    log.append("AB", Action.SLIDE, "smear.tif", value="positive")
    (found,) = summarise(log.entries())
    assert (found.judged, found.abnormal, found.key_judged, found.key_abnormal) == (3, 2, 2, 1)
    assert found.verdict == "positive"


def test_kappa_is_the_closed_form(tmp_path):
    log = ReviewLog(tmp_path)
    first = ["abnormal"] * 5 + ["normal"] * 5
    second = ["abnormal"] * 4 + ["normal"] * 5 + ["abnormal"]
    for i, (one, other) in enumerate(zip(first, second, strict=True)):
        judge(log, "AB", f"c{i}", one)
        judge(log, "CD", f"c{i}", other)
    judge(log, "AB", "alone", "unsure")
    (found,) = agreements(log.entries())
    # Observed 0.8, by chance 0.5·0.5 + 0.5·0.5.
    assert (found.readers, found.n, found.kappa) == (("AB", "CD"), 10, pytest.approx((0.8 - 0.5) / 0.5))


def test_agreement_without_variety_is_not_defined(tmp_path):
    log = ReviewLog(tmp_path)
    for reader in ("AB", "CD"):
        judge(log, reader, "c", "normal")
    (found,) = agreements(log.entries())
    assert found.kappa is None


def test_contradiction_and_doubt_are_no_verdict(tmp_path):
    log = ReviewLog(tmp_path)
    judge(log, "AB", "both", "abnormal")
    judge(log, "CD", "both", "normal")
    judge(log, "AB", "doubt", "unsure")
    judge(log, "AB", "neither", "normal")
    judge(log, "CD", "neither", "not a cell")
    judge(log, "AB", "sure", "abnormal")
    found = {one.cell: one.verdict for one in verdicts(log.entries())}
    assert found == {"both": None, "doubt": None, "neither": CellVerdict.NORMAL, "sure": CellVerdict.ABNORMAL}


def classified(triage, changes):
    """The GeoJSON file of `rank`, with classes set as QuPath sets them: cell's place → name of the class."""
    path = triage / "geojson" / "smear.tif.geojson"
    document = json.loads(path.read_text())
    detections = [one for one in document["features"] if one["properties"]["objectType"] == "detection"]
    for place, name in changes.items():
        detections[place]["properties"]["classification"] = {"name": name, "color": [1, 2, 3]}
        detections[place]["properties"].pop("name")  # QuPath users rename objects
    back = triage.parent / "smear.tif.geojson"
    back.write_text(json.dumps(document))
    return back


def test_classes_set_in_qupath_come_back_to_the_same_cells(triage):
    cells = Triage(triage).shown(SMEAR).cells
    back = classified(triage, {0: "abnormal", 5: "Normal", 17: "Not a cell", 3: "Positive", 9: "Tumor"})
    found = read_classes(back, cells)
    assert found.verdicts == {
        cells.ids[0]: "abnormal",
        cells.ids[5]: "normal",
        cells.ids[17]: "not a cell",
        cells.ids[3]: "abnormal",
    }
    assert (found.other_classes, found.unknown) == ({"Tumor": 1}, 0)


def test_an_object_where_no_cell_is_counts_as_unknown(triage):
    cells = Triage(triage).shown(SMEAR).cells
    back = classified(triage, {0: "abnormal"})
    document = json.loads(back.read_text())
    ring = [[1, 1], [3, 1], [3, 3], [1, 3], [1, 1]]
    document["features"].append(
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"objectType": "annotation", "classification": {"name": "abnormal"}},
        }
    )
    back.write_text(json.dumps(document))
    found = read_classes(back, cells)
    assert (len(found.verdicts), found.unknown) == (1, 1)


def outline(kind, coordinates):
    return json.dumps([{"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": {}}])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "{}",
        '{"features": 3}',
        '{"features": [{"properties": {}}]}',
        "[" * 9000,
        outline("Polygon", [[1, 2]]),
        outline("Polygon", [[[1], [2]]]),
        outline("Point", [1]),
        outline("Point", [1, 2]).replace("2", "1e999"),
    ],
)
def test_what_is_no_geojson_is_one_line(triage, text):
    path = triage / "back.geojson"
    path.write_text(text)
    with pytest.raises(TableError) as caught:
        read_classes(path, Triage(triage).shown(SMEAR).cells)
    assert "\n" not in str(caught.value)


def run(*line):
    result = CliRunner().invoke(app, ["feedback", *map(str, line)])
    return result.exit_code, " ".join(result.output.split())


def test_the_command_writes_what_fit_mil_reads(triage, tmp_path):
    log, cells = ReviewLog(triage), Triage(triage).shown(SMEAR).cells
    judge(log, "AB", cells.ids[0], "abnormal", rank=1)
    judge(log, "AB", cells.ids[1], "normal", rank=2)
    judge(log, "CD", cells.ids[1], "abnormal", rank=2)
    judge(log, "CD", cells.ids[2], "normal", rank=3)
    back = classified(triage, {0: "normal", 7: "abnormal"})
    status, said = run(triage, "--out", tmp_path / "f.csv", "--geojson", back)
    assert status == 0, said
    assert "2 unsure or contradictory" in said
    assert "kappa" in said
    # The first cell's class contradicts the reader's verdict; the second cell's readers contradict each other.
    assert read_feedback(tmp_path / "f.csv").cells == {"smear.tif": {cells.ids[2]: 0, cells.ids[7]: 1}}


def test_nothing_judged_is_one_line(triage):
    status, said = run(triage)
    assert status == 1
    assert "cytomil review" in said


def test_a_damaged_log_is_told_and_costs_no_other_line(triage, tmp_path):
    log = ReviewLog(triage)
    judge(log, "AB", "c1", "abnormal")
    with log.path.open("ab") as file:
        file.write(b"garbage\n")
    status, said = run(triage, "--out", tmp_path / "f.csv")
    assert status == 3, said
    assert "line 2" in said
    assert len(read_feedback(tmp_path / "f.csv").cells["smear.tif"]) == 1


def test_verdicts_on_another_version_of_a_slide_are_listed_and_left_out(triage, tmp_path):
    log, shown = ReviewLog(triage), Triage(triage)
    cells = shown.shown(SMEAR).cells
    present, before = {"slide_sha256": shown.slides[SMEAR].sha256}, {"slide_sha256": "d" * 64}
    log.append("AB", Action.CELL, "smear.tif", cell=cells.ids[0], value="normal", **before)
    status, said = run(triage, "--out", tmp_path / "f.csv")
    assert (status, "no verdicts on cells of the present version yet" in said) == (1, True)
    log.append("AB", Action.CELL, "smear.tif", cell=cells.ids[1], value="abnormal", **present)
    status, said = run(triage, "--out", tmp_path / "f.csv")
    assert status == 3
    assert "1 verdicts" in said
    assert "another version of its file does not count" in said
    assert cells.ids[0] not in (tmp_path / "f.csv").read_text(encoding="utf-8-sig")
