"""validate on a folder of bag files: what is measured, what is left out, what is written."""

import base64
import json
import re
import shutil
from dataclasses import replace
from html import unescape

import pytest
from typer.testing import CliRunner

from cytomil.app.cli.app import app
from cytomil.bags import read_manifest
from cytomil.bags.config import MakeBagsConfig
from cytomil.bags.make import make_bags
from cytomil.bags.patients import LabelWords
from cytomil.errors import EvaluationError, NotFoundError, SettingsError
from cytomil.files import is_sealed, read_json, sha256_of_file
from cytomil.progress import Problem, Silent
from cytomil.triage.config import RankConfig
from cytomil.validation.validate import validate
from cytomil.validation.write import write_validation
from cytomil.verification import verify
from tests.browser import start_chromium
from tests.triage.test_rank import make_road

NASTY = "<img src=x onerror=alert(1)>"
TOLD = "had a part in fitting the model"


@pytest.fixture(scope="module")
def road(shared):
    return shared.folder("road", make_road)


def make_local(root):
    bags = {"bag_size": 16, "train_bags": 8, "test_bags": 0, "cell_size": 24, "witness_rate": 0.25, "difficulty": 0.0}
    make_bags(MakeBagsConfig(out=root / "bags", seed=7, **bags), Silent())


@pytest.fixture(scope="module")
def local(shared):
    """Eight labelled folders of cells that no model was fitted to."""
    return shared.folder("local", make_local)


@pytest.fixture
def slides(road, local, tmp_path):
    """Eight slides, one of them broken, one that the model was fitted to, and one without a label."""
    from cytomil.bags import open_bag

    folder, lines = tmp_path / "slides", ["slide,label,patient"]
    for number, row in enumerate(read_manifest(local / "bags").rows):
        place = folder / f"local {number}"
        place.mkdir(parents=True)
        for i, image in enumerate(open_bag(read_manifest(local / "bags").file_of(row)).images()):
            (place / f"{i}.jpg").write_bytes(image)
        lines.append(f"local {number},{row.label},Q{number // 2}{row.label}")
    fitted = read_manifest(road / "bags").select("train")[0]
    shutil.copy(read_manifest(road / "bags").file_of(fitted), folder / "seen.h5")
    (folder / "broken.h5").write_bytes(b"no bag")
    (folder / NASTY).mkdir()
    (folder / NASTY / "a.jpg").write_text("")
    lines += [f"seen.h5,{fitted.label},", "broken.h5,1,", "gone,0,"]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def settings(road, out, **changed):
    return RankConfig(model=road / "model", out=out, top=2, device="cpu", engine="eager", **changed)


def run(road, slides, out, **changed):
    labels = slides.parent / "labels.csv"
    return validate(slides, labels, LabelWords(), settings(road, out, **changed), Silent())


def test_slides_that_were_trained_on_or_cannot_be_read_count_neither_for_nor_against(road, slides, tmp_path):
    found = run(road, slides, tmp_path / "out")
    assert {one.slide for one in found.slides} == {f"local {i}" for i in range(8)}
    left_out = {one.where: one.reason for one in found.left_out}
    assert set(left_out) == {"seen.h5", "broken.h5", "gone", NASTY}
    assert TOLD in left_out["seen.h5"]
    assert left_out["broken.h5"].startswith("not assessed: ")
    assert "seen.h5" not in {one.slide for one in found.worklist.slides}
    assert {one.key: one.n for one in found.figures if one.n}["sensitivity_review_first"] == found.n_diseased == 4
    assert [one.title for one in found.warnings][-1] == "FEW SLIDES"


def test_the_command_writes_card_page_and_worklist_and_leaves_the_model_alone(road, slides, tmp_path, monkeypatch):
    before = {file: sha256_of_file(file) for file in (road / "model").rglob("*") if file.is_file()}
    line = ["validate", str(road / "model"), str(slides), "--labels", str(tmp_path / "labels.csv"), "--json"]
    result = CliRunner().invoke(app, [*line, "--out", str(tmp_path / "out")], env={"COLUMNS": "80"})
    assert result.exit_code == 3, result.output
    assert max(map(len, result.stderr.splitlines())) <= 80 or "error" in result.stderr
    document = json.loads(result.stdout)
    card = read_json(tmp_path / "out" / "validation.json")
    assert is_sealed(card)
    assert card["schema"] == document["schema"] == "cytomil.validation/1"
    assert card["figures"] == document["figures"]
    assert (card["n_slides"], len(card["not_measured"]), len(document["left_out"])) == (8, 4, 4)
    assert "Q0" not in json.dumps(card["slides"])
    assert (tmp_path / "out" / "triage.json").is_file()
    assert before == {file: sha256_of_file(file) for file in (road / "model").rglob("*") if file.is_file()}
    assert verify(tmp_path / "out", Silent()).findings == ()
    (tmp_path / "out" / "validation.html").write_text("another page")
    (finding,) = verify(tmp_path / "out", Silent()).findings
    assert finding.where.endswith("validation.html")


def test_ranked_slides_are_not_read_again(road, slides, tmp_path):
    first = run(road, slides, tmp_path / "out")
    cards = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "cache").glob("*.json")}
    assert run(road, slides, tmp_path / "out").figures == first.figures
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "cache").glob("*.json")} == cards


def test_the_page_needs_nothing_and_obeys_no_name(road, slides, tmp_path):
    page = write_validation(run(road, slides, tmp_path / "out"), tmp_path / "out").read_text(encoding="utf-8")
    assert NASTY not in page
    assert "&lt;img src=x" in page
    assert "<script" not in page
    assert "default-src 'none'" in unescape(page)
    assert re.findall(r"(?:src|href)=\"(?!data:)", page) == []
    assert "Decision support, not a diagnosis." in page
    assert "signature" in page


@pytest.mark.long
def test_the_page_prints_on_one_sheet_at_its_longest(road, slides, tmp_path):
    found = run(road, slides, tmp_path / "out")
    longest = replace(
        found,
        model=f"/{'folder/' * 30}model",
        labels=f"/{'folder/' * 30}labels.csv",
        worklist=replace(found.worklist, folder=f"/{'folder/' * 30}slides"),
        left_out=tuple(Problem(f"slide {i} {'x' * 200}", f"{i} {'damaged ' * 40}") for i in range(20)),
        uncompared=8,
    )
    browser = start_chromium(tmp_path / "chromium")
    try:
        browser.get(write_validation(longest, tmp_path / "out").as_uri())
        printed = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
        assert len(re.findall(rb"/Type /Page\b", base64.b64decode(printed["data"]))) == 1
        assert len(found.warnings) == 5
        assert browser.get_log("browser") == []
    finally:
        browser.quit()


def test_resolutions_come_from_one_table(road, slides, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("slide,label,mpp\nlocal 0,0,0.25\n")
    (tmp_path / "mpp.csv").write_text("slide,mpp\nlocal 0,0.5\n")
    with pytest.raises(SettingsError, match="both give resolutions"):
        run(road, slides, tmp_path / "out", mpp_csv=tmp_path / "mpp.csv")
    assert len(run(road, slides, tmp_path / "out").slides) == 1
    assert (tmp_path / "out" / "mpp.csv").read_text() == "slide,mpp\nlocal 0,0.25\n"


def test_what_cannot_be_measured_is_one_line(road, slides, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("slide,label\nseen.h5,1\n")
    with pytest.raises(EvaluationError, match=r"none of the slides in .* can be measured"):
        run(road, slides, tmp_path / "out")
    with pytest.raises(SettingsError, match="pseudonymise"):
        run(road, slides, tmp_path / "out", pseudonymise=tmp_path / "key")
    labels.unlink()
    with pytest.raises(NotFoundError, match=r"labels\.csv does not exist"):
        run(road, slides, tmp_path / "out")
    assert not (tmp_path / "out").exists()
