"""rank on whole slides: every kind of entry has its state, finished slides are not read again, names come out right."""

import csv
import hashlib
import html
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from cytomil.app.cli.app import app
from cytomil.app.cli.console import console
from cytomil.bags import open_bag, read_manifest
from cytomil.bags.config import MakeBagsConfig
from cytomil.bags.make import make_bags
from cytomil.features.config import EmbedConfig
from cytomil.features.embed import embed
from cytomil.files import write_json_card
from cytomil.mil.config import FitMilConfig
from cytomil.mil.fit import fit_mil
from cytomil.progress import Silent
from cytomil.slides import Cutting
from cytomil.training.config import PretrainConfig
from cytomil.training.loop import pretrain
from cytomil.triage import apart, whole_slide
from cytomil.triage.apart import ReadingProcess
from cytomil.triage.config import RankConfig
from cytomil.triage.rank import rank
from cytomil.triage.report import render_report
from cytomil.triage.worklist import Call
from cytomil.triage.write import to_document, write_worklist
from cytomil.verification import verify

SCRIPT = "<img src=x onerror=alert(1)>"
ODD = 'Präparat Müller "7 rot"'
CUTTING = Cutting(crop_um=12.0, crop_px=24)
REAL = Path(__file__).parents[3] / "shared" / "data" / "slides"


def draw(seed, n_abnormal=0, side=400, mpp=0.25, stain=(150, 90, 160), n=36):
    """A pale field of purple discs on a jittered grid, the first ``n_abnormal`` larger and darker, RGB (side, side, 3)."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (side, side), (236, 232, 238))
    pen = ImageDraw.Draw(image)
    per_row = int(np.ceil(np.sqrt(n)))
    step = side / per_row
    for i in range(n):
        x, y = (i % per_row + 0.5) * step + rng.uniform(-4, 4), (i // per_row + 0.5) * step + rng.uniform(-4, 4)
        radius = rng.uniform(3.2, 3.8) / mpp
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=stain)
        inner = radius * (0.85 if i < n_abnormal else 0.4)
        pen.ellipse(
            (x - inner, y - inner, x + inner, y + inner), fill=(70, 30, 110) if i < n_abnormal else (120, 60, 140)
        )
    noise = rng.normal(0, 3, (side, side, 3))
    return np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)


def write_tiff(path, image, mpp=0.25):
    tags = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"} if mpp else {}
    with tifffile.TiffWriter(path) as tiff:
        for level in range(2):
            tiff.write(image[:: 2**level, :: 2**level], tile=(128, 128), photometric="rgb", subfiletype=level, **tags)
            tags = {}
    return path


def make_road(root):
    """Eight labelled synthetic slides, and bags, encoder and triage model made of them by the verbs themselves."""
    slides = root / "slides"
    slides.mkdir()
    lines = ["slide,label,split,mpp"]
    for i in range(8):
        label = i % 2
        write_tiff(slides / f"s{i}.tif", draw(i, 6 * label), 0.25 if i else 900.0)
        lines.append(f"s{i}{'.tif' if i > 3 else ''},{label},train,{'0.25' if i == 0 else ''}")
    (root / "labels.csv").write_text("\n".join(lines))
    bags = MakeBagsConfig(
        source=str(slides),
        labels=root / "labels.csv",
        out=root / "bags",
        crop_um=CUTTING.crop_um,
        crop_px=CUTTING.crop_px,
    )
    made = make_bags(bags, Silent())
    assert made.problems == ()
    train = {"method": "simclr", "epochs": 2, "batch_size": 32, "image_size": 16, "weights": "none"}
    train["arch"] = "test_resnet"
    pretrain(PretrainConfig(bags=root / "bags", out=root / "encoder", **train), Silent())
    embed(EmbedConfig(bags=root / "bags", encoder=root / "encoder", out=root / "features", orientations=1), Silent())
    fit = {"epochs": 5, "folds": 2, "ensemble": 1}
    fit_mil(FitMilConfig(features=root / "features", encoder=root / "encoder", out=root / "model", **fit), Silent())


@pytest.fixture(scope="module")
def road(shared):
    return shared.folder("slides-road", make_road)


def settings(road, out, **changed):
    return RankConfig(model=road / "model", out=out, **changed)


def by_name(worklist):
    return {slide.slide: slide for slide in worklist.slides}


@pytest.fixture
def three(road, tmp_path):
    """A folder of three good slides."""
    folder = tmp_path / "three"
    folder.mkdir()
    for i in (1, 2, 3):
        shutil.copy(road / "slides" / f"s{i}.tif", folder)
    return folder


@pytest.fixture
def mixed(road, tmp_path):
    """A good slide, odd names, everything that can be wrong, and the other kinds of entry."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    good = road / "slides" / "s1.tif"
    shutil.copy(good, folder / "good.tif")
    shutil.copy(good, folder / f"{ODD}.tif")
    (folder / "truncated.tif").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (folder / "empty.tif").touch()
    (folder / "words.svs").write_text("these are words")
    write_tiff(folder / "blank.tif", np.full((400, 400, 3), 255, np.uint8))
    write_tiff(folder / "sparse.tif", draw(5, n=4))
    write_tiff(folder / "no-mpp.tif", draw(6), mpp=None)
    write_tiff(folder / "wrong-mpp.tif", draw(7), mpp=1000.0)
    Image.fromarray(draw(8)).save(folder / "field.png")
    row = read_manifest(road / "bags").rows[0]
    shutil.copy(road / "bags" / row.path, folder / "bag.h5")
    (folder / SCRIPT).mkdir()
    for i, image in enumerate(open_bag(road / "bags" / row.path).images()):
        (folder / SCRIPT / f"cell {i}.jpg").write_bytes(image)
    (folder / "notes.csv").write_text("a,b\n")
    return folder


STATES = {
    "good.tif": "",
    f"{ODD}.tif": "",
    "bag.h5": "",
    SCRIPT: "",
    "truncated.tif": "damaged|cannot be",
    "empty.tif": "is empty",
    "words.svs": "not a whole slide",
    "blank.tif": "no cells found",
    "sparse.tif": "4 cells found, at least 10",
    "no-mpp.tif": "does not state its resolution.*--mpp",
    "wrong-mpp.tif": "1000 µm/px.*--mpp",
    "field.png": "does not state its resolution.*--mpp",
}
NEED_MPP = ("no-mpp.tif", "wrong-mpp.tif", "field.png")


@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_every_entry_is_in_the_worklist_with_its_state(road, mixed, tmp_path):
    out = tmp_path / "out"
    line = ["rank", str(mixed), "--model", str(road / "model"), "--out", str(out), "--json", "--cells-csv"]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 3, result.output
    document = json.loads(result.stdout)
    slides = {slide["slide"]: slide for slide in document["slides"]}
    assert set(slides) == set(STATES)
    for name, reason in STATES.items():
        slide = slides[name]
        assert (slide["call"] == "not assessed") is bool(reason), (name, slide["reason"])
        assert (slide["probability"] is None) is bool(reason)
        assert re.search(reason, slide["reason"]), slide["reason"]
    assert all(slides[name]["files"] == {} for name in ("bag.h5", SCRIPT, "words.svs"))
    for name in ("blank.tif", "sparse.tif"):
        assert set(slides[name]["files"]) == {"qc_picture"}
        assert Image.open(out / slides[name]["files"]["qc_picture"]).size == (400, 400)
    assert slides["sparse.tif"]["n_cells"] == 4
    assert "traceback" not in result.output.lower()
    # What is right, once the resolution is given; what had its own plausible value is not read again and stays as it was.
    again = CliRunner().invoke(app, [*line, "--mpp", "0.25"])
    assert again.exit_code == 3
    after = {slide["slide"]: slide for slide in json.loads(again.stdout)["slides"]}
    assert all(after[name]["call"] != "not assessed" for name in NEED_MPP)
    assert after["good.tif"] == {**slides["good.tif"], "rank": after["good.tif"]["rank"]}


def test_names_come_out_right_everywhere(road, mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(console, "width", 300)
    out = tmp_path / "out"
    names = {SCRIPT, f"{ODD}.tif"}
    for entry in mixed.iterdir():
        if entry.name not in names:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    line = ["rank", str(mixed), "--model", str(road / "model"), "--out", str(out)]
    shown = CliRunner().invoke(app, line)
    assert shown.exit_code == 0, shown.output
    assert all(name in shown.stderr for name in names)
    document = json.loads((out / "triage.json").read_text(encoding="utf-8"))
    assert {slide["slide"] for slide in document["slides"]} == names
    rows = csv.DictReader(io.StringIO((out / "triage.csv").read_text(encoding="utf-8-sig")))
    assert {row["slide"] for row in rows} == names
    report = (out / "report.html").read_text(encoding="utf-8")
    assert SCRIPT not in report
    assert html.escape(SCRIPT) in report
    assert "Präparat Müller" in report
    (slide,) = (slide for slide in document["slides"] if slide["slide"] != SCRIPT)
    assert all(Path(file).name.isascii() and len(Path(file).parts) == 2 for file in slide["files"].values())
    geojson = json.loads((out / slide["files"]["geojson"]).read_text(encoding="utf-8"))
    assert geojson["slide"] == f"{ODD}.tif"
    assert not [path for path in out.rglob("*") if "<" in path.name]


def test_a_slide_ranks_as_the_bag_that_was_made_of_it(road, three, tmp_path):
    shutil.copy(road / "bags" / "s1.h5", three)
    ranked = by_name(rank(three, settings(road, tmp_path / "out"), Silent()))
    assert ranked["s1.tif"].probability == pytest.approx(ranked["s1.h5"].probability, abs=1e-6)
    assert [c.instance_id for c in ranked["s1.tif"].key_instances] == [
        c.instance_id for c in ranked["s1.h5"].key_instances
    ]
    assert all(cell.x_px is None for cell in ranked["s1.h5"].key_instances)


def test_bags_of_slides_and_the_model_carry_how_cells_were_cut(road):
    bag = open_bag(road / "bags" / "s1.h5")
    assert bag.info.cutting == CUTTING
    assert bag.info.mpp == pytest.approx(0.5)
    assert len(bag) == 36
    x, y = bag.coords[0]
    assert bag.instance_ids[0].startswith("x")
    centre = [int(part) for part in bag.instance_ids[0][1:].split("y")]
    assert np.abs(np.array(centre) - (x + 24, y + 24)).max() <= 1
    card = json.loads((road / "model" / "triage.json").read_text())
    assert Cutting(**card["cutting"]) == CUTTING
    assert sorted(path.name[:2] for path in (road / "bags" / "qc").iterdir()) == [f"s{i}" for i in range(8)]


def test_bad_slides_do_not_end_make_bags(road, mixed, tmp_path):
    names = ["good", "blank", "wrong-mpp", "truncated", "nowhere"]
    (tmp_path / "labels.csv").write_text(
        "slide,label,split\n" + "".join(f"{n},{i % 2},train\n" for i, n in enumerate(names))
    )
    made = make_bags(
        MakeBagsConfig(source=str(mixed), labels=tmp_path / "labels.csv", out=tmp_path / "bags", crop_px=24), Silent()
    )
    assert [row.bag_id for row in made.rows] == ["good"]
    reasons = {problem.where: problem.reason for problem in made.problems}
    assert set(names[1:]) <= set(reasons)
    assert "--mpp" in reasons["wrong-mpp"]
    assert "has no line" in reasons["field.png"]
    assert (tmp_path / "bags" / "qc").is_dir()


def test_cells_to_teach_the_model_are_marked_and_change_nothing_else(road, three, tmp_path):
    plain = rank(three, settings(road, tmp_path / "plain", top=5), Silent())
    out = tmp_path / "out"
    for _ in range(2):  # read, and then from the cache
        worklist = rank(three, settings(road, out, top=5, learn=4), Silent())
        write_worklist(worklist, out)
        for slide, without in zip(worklist.slides, plain.slides, strict=True):
            assert slide.key_instances == without.key_instances
            assert without.to_teach == () and len(slide.to_teach) == 4
            assert slide.to_teach[0].score <= slide.key_instances[-1].score
            features = json.loads((out / slide.files["geojson"]).read_text())["features"]
            classes = [one["properties"]["classification"]["name"] for one in features[:9]]
            assert classes == ["key cell"] * 5 + ["to teach the model"] * 4
            assert [one["properties"]["name"] for one in features[5:9]] == ["T1", "T2", "T3", "T4"]
            named = {str(one["properties"]["name"]): one["geometry"] for one in features[9:]}
            assert [one["geometry"] for one in features[5:9]] == [named[cell.instance_id] for cell in slide.to_teach]
    document = json.loads((out / "triage.json").read_text())
    schema = json.loads((Path(whole_slide.__file__).parent / "triage.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(document)
    assert all(len(slide["to_teach"]) == 4 for slide in document["slides"])


def test_key_cells_have_places_and_the_files_agree(road, three, tmp_path):
    out = tmp_path / "out"
    worklist = rank(three, settings(road, out, top=5, cells_csv=True), Silent())
    for slide in worklist.slides:
        assert len(slide.key_instances) == 5
        assert slide.mpp == pytest.approx(0.25)
        for cell in slide.key_instances:
            assert cell.x_um == pytest.approx(cell.x_px * 0.25, rel=1e-4)
            assert cell.instance_id == f"x{cell.x_px:.0f}y{cell.y_px:.0f}"
            assert "normal training slides" in cell.why
        for picture in (slide.thumbnail, slide.qc_picture):
            assert Image.open(io.BytesIO(picture)).format == "JPEG"
        geojson = json.loads((out / slide.files["geojson"]).read_text())
        rows = list(csv.DictReader(io.StringIO((out / slide.files["cells_csv"]).read_text(encoding="utf-8-sig"))))
        annotations, detections = geojson["features"][:5], geojson["features"][5:]
        assert len(detections) == len(rows) == slide.n_instances == 36
        for feature, row in zip(detections, rows, strict=True):
            (ring,) = feature["geometry"]["coordinates"]
            assert feature["type"] == "Feature"
            assert feature["geometry"]["type"] == "Polygon"
            assert ring[0] == ring[-1]
            assert len(ring) == 9
            assert np.allclose(np.mean(ring[:-1], axis=0), (float(row["x"]), float(row["y"])), atol=0.2)
            assert feature["properties"]["objectType"] == "detection"
            assert feature["properties"]["measurements"]["score"] == float(row["score"])
        assert [one["properties"]["objectType"] for one in annotations] == ["annotation"] * 5
        assert [one["properties"]["name"] for one in annotations] == ["1", "2", "3", "4", "5"]
        for cell, one in zip(slide.key_instances, annotations, strict=True):
            assert one["geometry"] in [found["geometry"] for found in detections]
            assert one["properties"]["measurements"]["score"] == pytest.approx(cell.score, rel=1e-3)
        assert max(float(row["score"]) for row in rows) == pytest.approx(slide.key_instances[0].score, rel=1e-3)
        heat = Image.open(out / slide.files["heatmap"])
        assert heat.format == "PNG"
        assert heat.size[0] == 400
        assert heat.size[1] > 400  # its legend


class ReadHere(ReadingProcess):
    """Reads slides in this process."""

    def __init__(self):
        self._served = apart._Served()

    def run(self, path, request):
        return request(self._served)

    def close(self):
        pass


class Counted:
    """Counts how often each slide file is opened."""

    def __init__(self, monkeypatch):
        self.names = []
        from cytomil.slides import open as handles
        from cytomil.slides import resolution

        monkeypatch.setattr("cytomil.triage.rank.ReadingProcess", ReadHere)

        real = resolution.open_slide

        def counting(path, mpp=None):
            self.names.append(path.name)
            return real(path, mpp)

        monkeypatch.setattr(resolution, "open_slide", counting)
        monkeypatch.setattr(handles, "open_slide", counting)


def test_a_finished_slide_is_not_opened_again(road, three, tmp_path, monkeypatch):
    write_tiff(three / "blank.tif", np.full((400, 400, 3), 255, np.uint8))
    first = rank(three, settings(road, tmp_path / "out"), Silent())
    opened = Counted(monkeypatch)
    assert rank(three, settings(road, tmp_path / "out"), Silent()).slides == first.slides
    assert opened.names == []
    os.utime(three / "s1.tif", ns=(1, 1))
    assert rank(three, settings(road, tmp_path / "out"), Silent()).slides == first.slides
    assert set(opened.names) == {"s1.tif"}


def test_the_number_of_threads_changes_no_byte(road, three, tmp_path):
    written = []
    for workers in (1, 3):
        out = tmp_path / str(workers)
        write_worklist(rank(three, settings(road, out, workers=workers, batch_size=10, cells_csv=True), Silent()), out)
        files = [out / "triage.csv", *sorted((out / "geojson").iterdir()), *sorted((out / "cells").iterdir())]
        written.append([file.read_bytes() for file in files])
    assert written[0] == written[1]


def test_of_a_slide_at_most_forty_bytes_a_cell_are_kept_beside_its_pictures(road, three, tmp_path):
    out = tmp_path / "out"
    n_cells = sum(slide.n_instances for slide in rank(three, settings(road, out), Silent()).slides)
    assert not list((out / "cache").glob("*.h5"))
    kept = [path.stat().st_size for path in (out / "cache").glob("*.npz")]
    head = 2_000  # names and shapes of the arrays in a file
    assert sum(kept) <= 40 * n_cells + head * len(kept)


def test_another_top_finds_no_cells_anew(road, three, tmp_path, monkeypatch):
    rank(three, settings(road, tmp_path / "out", top=3), Silent())

    def refuse(*_, **__):
        raise AssertionError("cells were looked for again")

    monkeypatch.setattr(whole_slide, "iter_cells", refuse)
    again = rank(three, settings(road, tmp_path / "out", top=4), Silent())
    assert [len(slide.key_instances) for slide in again.slides] == [4, 4, 4]


def test_a_lost_file_of_a_slide_is_made_again(road, three, tmp_path):
    first = rank(three, settings(road, tmp_path / "out"), Silent())
    lost = tmp_path / "out" / first.slides[0].files["geojson"]
    content = lost.read_bytes()
    lost.unlink()
    assert rank(three, settings(road, tmp_path / "out"), Silent()).slides == first.slides
    assert lost.read_bytes() == content


@pytest.mark.nightly  # `tests/faults` kills rank too
def test_killed_half_way_and_run_again_the_worklist_is_that_of_an_unbroken_run(road, tmp_path):
    for i in range(4):
        (tmp_path / "slides").mkdir(exist_ok=True)
        shutil.copy(road / "slides" / f"s{i + 1}.tif", tmp_path / "slides")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "cytomil", "rank", str(tmp_path / "slides"), "--model", str(road / "model")]
    (tmp_path / "killed").mkdir()
    process = subprocess.Popen(
        line, cwd=tmp_path / "killed", env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    cache = tmp_path / "killed" / "triage" / "cache"
    deadline = time.monotonic() + 120
    while len(list(cache.glob("[!.]*.json"))) < 2:
        assert process.poll() is None, "rank ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in cache.glob("[!.]*.json")}
    assert 2 <= len(finished) < 4
    so_far = json.loads((tmp_path / "killed" / "triage" / "triage.json").read_text())
    assert (so_far["n_unread"], len(so_far["slides"]), so_far["all_assessed"]) == (3, 1, False)
    assert "UNFINISHED: 1 of 4 slides read so far" in (tmp_path / "killed" / "triage" / "report.html").read_text()
    (tmp_path / "unbroken").mkdir()
    for folder in ("killed", "unbroken"):
        subprocess.run(line, cwd=tmp_path / folder, env=environment, check=True, capture_output=True)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    whole, resumed = (tmp_path / folder / "triage" for folder in ("unbroken", "killed"))
    assert (whole / "triage.csv").read_bytes() == (resumed / "triage.csv").read_bytes()
    documents = [json.loads((out / "triage.json").read_text()) for out in (whole, resumed)]
    for document in documents:
        del document["created"], document["sha256_of_this"], document["files_sha256"]["report.html"]
    assert documents[0] == documents[1]
    assert {p.relative_to(whole) for p in whole.rglob("*")} == {p.relative_to(resumed) for p in resumed.rglob("*")}


def test_the_report_grows_slide_by_slide(road, three, tmp_path):
    seen = []
    whole = rank(three, settings(road, tmp_path / "out"), Silent(), seen.append)
    assert [(len(one.slides), one.unread) for one in seen] == [(1, 2), (2, 1)]
    assert (len(whole.slides), whole.unread) == (3, 0)
    assert "UNFINISHED" in render_report(seen[0])
    assert "UNFINISHED" not in render_report(whole)


def test_slides_and_model_are_named_by_their_hashes_and_cells_show_what_lies_around_them(road, three, tmp_path):
    worklist = rank(three, settings(road, tmp_path / "out", top=2), Silent())
    for slide in worklist.slides:
        assert slide.sha256 == hashlib.sha256((three / slide.slide).read_bytes()).hexdigest()
        for cell in slide.key_instances:
            assert Image.open(io.BytesIO(cell.context)).size == (320, 320)
    assert (
        worklist.model_card["model_sha256"] == hashlib.sha256((road / "model" / "triage.json").read_bytes()).hexdigest()
    )
    assert [slide.mpp_given for slide in worklist.slides] == [False] * 3
    given = rank(three, settings(road, tmp_path / "given", mpp_csv=mpp_table(tmp_path)), Silent())
    assert by_name(given)["s1.tif"].mpp_given
    assert not by_name(given)["s2.tif"].mpp_given


def mpp_table(tmp_path):
    (tmp_path / "mpp.csv").write_text("slide,mpp\ns1,0.25\n")
    return tmp_path / "mpp.csv"


def test_a_row_of_the_csv_wins_and_the_fallback_does_not_overrule_a_plausible_file(road, three, tmp_path):
    (tmp_path / "mpp.csv").write_text("slide,mpp\ns1,0.3\ns2.tif,0.2\n")
    chosen = settings(road, tmp_path / "out", mpp=0.5, mpp_csv=tmp_path / "mpp.csv")
    ranked = by_name(rank(three, chosen, Silent()))
    assert [ranked[f"s{i}.tif"].mpp for i in (1, 2, 3)] == pytest.approx([0.3, 0.2, 0.25])


@pytest.mark.parametrize(
    ("text", "message"), [("slide,mpp\na,x\n", "line 2.*'x'"), ("a,b\n", "column"), ("slide,mpp\na,1\na,1\n", "twice")]
)
def test_a_faulty_resolution_csv_is_one_clear_line(road, three, tmp_path, text, message):
    (tmp_path / "mpp.csv").write_text(text)
    line = ["rank", three, "--model", road / "model", "--out", tmp_path / "out", "--mpp-csv", tmp_path / "mpp.csv"]
    result = CliRunner(env={"COLUMNS": "400"}).invoke(app, [str(word) for word in line])
    assert result.exit_code == 1
    assert re.search(message, result.stderr.replace("\n", " ")), result.stderr


def without_cutting(road, folder):
    shutil.copytree(road / "model", folder)
    card = json.loads((folder / "triage.json").read_text())
    write_json_card(folder / "triage.json", card | {"cutting": None})
    return folder


def test_a_model_that_knows_no_crop_says_what_to_do_and_takes_it_from_the_user(road, three, tmp_path):
    shutil.copy(road / "bags" / "s1.h5", three)
    model = without_cutting(road, tmp_path / "model")
    refused = by_name(rank(three, RankConfig(model=model, out=tmp_path / "out"), Silent()))
    assert refused["s1.tif"].call is Call.NOT_ASSESSED
    assert "--crop-um" in refused["s1.tif"].reason
    assert refused["s1.h5"].probability is not None
    told = by_name(rank(three, RankConfig(model=model, out=tmp_path / "out", crop_um=12.0), Silent()))
    assert all(slide.probability is not None for slide in told.values())


def test_slides_of_another_stain_are_flagged_and_slides_like_the_training_ones_are_not(road, tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    for i in (20, 21):
        write_tiff(folder / f"alike-{i}.tif", draw(i, 6 * (i % 2)))
    write_tiff(folder / "brown.tif", draw(22, stain=(120, 70, 20)))
    write_tiff(folder / "blue.tif", draw(23, stain=(20, 20, 120)))
    ranked = by_name(rank(folder, settings(road, tmp_path / "out"), Silent()))
    assert not [c for name in ("alike-20.tif", "alike-21.tif") for c in ranked[name].cautions]
    for name in ("brown.tif", "blue.tif"):
        assert ranked[name].cautions[0].startswith("Unlike the training slides: do not rely on its call")
        assert ranked[name].call is Call.REVIEW
        assert ranked[name].is_unlike
        assert ranked[name].novelty_p < 0.05


def test_the_document_follows_its_published_schema(road, mixed, tmp_path):
    worklist = rank(mixed, settings(road, tmp_path / "out", cells_csv=True), Silent())
    write_worklist(worklist, tmp_path / "out")
    schema = json.loads((Path(whole_slide.__file__).parent / "triage.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    document = json.loads((tmp_path / "out" / "triage.json").read_text(encoding="utf-8"))
    assert [error.message for error in validator.iter_errors(document)] == []
    assert not validator.is_valid(document | {"slides": [document["slides"][0] | {"call": "benign"}]})
    assert not validator.is_valid({key: value for key, value in document.items() if key != "thresholds"})


def test_a_worklist_of_whole_slides_verifies_and_a_changed_map_or_cache_is_named(road, three, tmp_path):
    out = tmp_path / "out"
    write_worklist(rank(three, settings(road, out, cells_csv=True), Silent()), out)
    verified = verify(out, Silent())
    assert verified.findings == ()
    files = [file for file in out.rglob("*") if file.is_file() and not file.name.startswith(".")]
    assert verified.n_files == len(files)
    for kind in ("heatmaps/*", "geojson/*", "cells/*", "qc/*", "cache/*.npz", "cache/*.json"):
        file = next(out.glob(kind))
        whole = file.read_bytes()
        file.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        assert [one.where for one in verify(out, Silent()).findings] == [str(file)]
        file.write_bytes(whole)


def test_the_thresholds_show_their_uncertainty(road, three, tmp_path):
    worklist = rank(three, settings(road, tmp_path / "out"), Silent())
    low, high = worklist.threshold_range
    assert low <= high
    assert to_document(worklist)["thresholds"]["review_first_range"] == (low, high)
    assert "They are uncertain" in render_report(worklist)
    assert "They are uncertain" not in render_report(replace(worklist, threshold_range=None))


def test_a_report_too_heavy_for_one_file_keeps_its_pictures_beside_it(road, three, tmp_path, monkeypatch):
    worklist = rank(three, settings(road, tmp_path / "out"), Silent())
    write_worklist(worklist, tmp_path / "out")
    assert not (tmp_path / "out" / "report_files").exists()
    monkeypatch.setattr("cytomil.triage.write._MAX_BYTES_IN_ONE_FILE", 1000)
    write_worklist(worklist, tmp_path / "out")
    assert list((tmp_path / "out" / "report_files").iterdir())


def test_a_bag_folders_qc_pictures_are_no_slide(road, tmp_path):
    ranked = rank(road / "bags", settings(road, tmp_path / "out"), Silent())
    assert {slide.slide for slide in ranked.slides} == {f"s{i}{'.tif' if i > 3 else ''}.h5" for i in range(8)}


@pytest.mark.long
@pytest.mark.skipif(not REAL.is_dir(), reason="the real slides are not in ../shared/data/slides")
def test_real_slides_a_wrong_tag_is_listed_with_its_cure_and_tissue_never_crashes(road, tmp_path):
    folder = tmp_path / "real"
    folder.mkdir()
    (folder / "CMU-1-Small-Region.svs").symlink_to(REAL / "CMU-1-Small-Region.svs")
    with Image.open(REAL / "smear-abnormal-4.tif") as smear:  # tifffile reads no JPEG without another package
        quarter = np.asarray(smear.crop((0, 0, smear.width // 2, smear.height // 2)))  # for time
    write_tiff(folder / "smear-abnormal-4.tif", quarter, mpp=900.0)
    ranked = by_name(rank(folder, settings(road, tmp_path / "out"), Silent()))
    assert ranked["smear-abnormal-4.tif"].call is Call.NOT_ASSESSED
    assert "--mpp" in ranked["smear-abnormal-4.tif"].reason
    tissue = ranked["CMU-1-Small-Region.svs"]
    assert tissue.call is Call.NOT_ASSESSED or tissue.cautions
    told = by_name(rank(folder, settings(road, tmp_path / "out", mpp=0.1), Silent()))
    assert told["smear-abnormal-4.tif"].n_instances > 250
    assert told["CMU-1-Small-Region.svs"].mpp == pytest.approx(0.499)


def test_a_name_that_is_not_utf8_can_be_written_and_shown(road, tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    try:
        shutil.copy(road / "slides" / "s1.tif", os.fsencode(folder) + b"/M\xfcller.tif")
    except OSError:
        pytest.skip("this file system takes no names that are not UTF-8")
    (slide,) = rank(folder, settings(road, tmp_path / "out"), Silent()).slides
    write_worklist(rank(folder, settings(road, tmp_path / "out"), Silent()), tmp_path / "out")
    assert slide.slide == "M\\xfcller.tif"
    assert slide.probability is not None, slide.reason
    assert slide.slide in (tmp_path / "out" / "triage.csv").read_text(encoding="utf-8")
