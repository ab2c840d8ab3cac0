import csv
import io
import json
import os
import shutil

import h5py
import numpy as np
import pytest
from PIL import Image, ImageOps

from cytomil.bags import BagInfo, Instance, open_bag, read_manifest, write_bag
from cytomil.bags.config import MakeBagsConfig
from cytomil.bags.make import make_bags
from cytomil.encoders.bundle import load_bundle
from cytomil.errors import NotFoundError, TriageModelError
from cytomil.features.config import EmbedConfig
from cytomil.features.embed import Embedder, embed
from cytomil.files import is_sealed
from cytomil.mil.config import FitMilConfig
from cytomil.mil.fit import fit_mil
from cytomil.mil.novelty import MANY_CELLS
from cytomil.mil.triage_model import load_triage_model
from cytomil.progress import Silent
from cytomil.text import from_text_cell
from cytomil.training.config import PretrainConfig
from cytomil.training.loop import pretrain
from cytomil.triage.apart import ReadingProcess
from cytomil.triage.config import RankConfig
from cytomil.triage.rank import rank, work_on
from cytomil.triage.sources import SlideEntry
from cytomil.triage.worklist import Call
from cytomil.triage.write import to_document, write_worklist
from tests.counting import Counting

ODD_NAMES = ("<img src=x onerror=alert(1)>", 'Müller "left" 2', "=1+1")


def make_road(root):
    """Bags, encoder, features and triage model, made by the verbs themselves at the smallest size."""
    bags = {"bag_size": 16, "train_bags": 8, "test_bags": 4, "cell_size": 24, "witness_rate": 0.25, "difficulty": 0.0}
    make_bags(MakeBagsConfig(out=root / "bags", **bags), Silent())
    pretrain(
        PretrainConfig(
            bags=root / "bags",
            out=root / "encoder",
            method="simclr",
            epochs=1,
            batch_size=32,
            image_size=16,
            weights="none",
            arch="test_resnet",
        ),
        Silent(),
    )
    embed(EmbedConfig(bags=root / "bags", encoder=root / "encoder", out=root / "features"), Silent())
    fit = {"epochs": 3, "folds": 2, "ensemble": 2}
    fit_mil(FitMilConfig(features=root / "features", encoder=root / "encoder", out=root / "model", **fit), Silent())


@pytest.fixture(scope="module")
def road(shared):
    return shared.folder("road", make_road)


@pytest.fixture
def slides(road, tmp_path):
    """A folder with bag files, folders of cells, odd names, and everything that can be wrong with a slide."""
    folder = tmp_path / "slides"
    folder.mkdir()
    manifest = read_manifest(road / "bags")
    test_rows = manifest.select("test")
    for row in test_rows[:2]:
        shutil.copy(manifest.file_of(row), folder)
    for name, row in zip(ODD_NAMES, test_rows, strict=False):
        (folder / name).mkdir()
        for i, image in enumerate(open_bag(manifest.file_of(row)).images()):
            (folder / name / f"cell {i}.jpg").write_bytes(image)
    (folder / "empty").mkdir()
    (folder / "only-rubbish").mkdir()
    (folder / "only-rubbish" / "a.jpg").write_text("not an image")
    (folder / "truncated.h5").write_bytes(manifest.file_of(test_rows[0]).read_bytes()[:2000])
    (folder / "words.svs").write_text("these are words")
    (folder / "mystery.xyz").write_text("?")
    (folder / "labels.csv").write_text("slide,label\n")
    (folder / ".hidden").write_text("")
    return folder


def settings(road, out, **changed):
    return RankConfig(model=road / "model", out=out, **changed)


def test_every_slide_is_in_the_worklist_with_its_state(road, slides, tmp_path):
    worklist = rank(slides, settings(road, tmp_path / "out"), Silent())
    by_name = {slide.slide: slide for slide in worklist.slides}
    expected = {entry.name for entry in slides.iterdir()} - {"labels.csv", ".hidden"}
    assert set(by_name) == expected
    bad = {"empty", "only-rubbish", "truncated.h5", "words.svs", "mystery.xyz"}
    for name, slide in by_name.items():
        assert (slide.call is Call.NOT_ASSESSED) is (name in bad), (name, slide.reason)
        assert bool(slide.reason) is (name in bad)
        assert (slide.probability is None) is (name in bad)
    assert not worklist.all_assessed
    assert [slide.slide in bad for slide in worklist.slides] == sorted((n in bad for n in by_name), reverse=True)
    probabilities = [s.probability for s in worklist.slides if s.probability is not None]
    assert probabilities == sorted(probabilities, reverse=True)


def test_calls_follow_the_models_thresholds(road, slides, tmp_path):
    worklist = rank(slides, settings(road, tmp_path / "out"), Silent())
    assert worklist.low_threshold <= worklist.threshold
    for slide in worklist.slides:
        if slide.probability is not None:
            expected = (
                Call.REVIEW_FIRST
                if slide.probability >= worklist.threshold
                else Call.REVIEW
                if slide.probability >= worklist.low_threshold
                else Call.LOW_PRIORITY
            )
            assert slide.call is expected


def test_a_folder_of_cells_ranks_as_the_bag_it_was_made_from(road, slides, tmp_path):
    manifest = read_manifest(road / "bags")
    row = manifest.select("test")[0]
    worklist = rank(slides, settings(road, tmp_path / "out"), Silent())
    by_name = {slide.slide: slide for slide in worklist.slides}
    assert by_name[ODD_NAMES[0]].probability == pytest.approx(by_name[row.path].probability, abs=1e-5)


def test_a_model_of_averaged_orientations_ranks_turned_cells_as_it_ranks_them(road, tmp_path):
    manifest = read_manifest(road / "bags")
    bag = open_bag(manifest.file_of(manifest.select("test")[0]))
    turns = {"as-it-is": lambda image: image, "mirrored": ImageOps.mirror, "rotated": lambda image: image.rotate(90)}
    for name, turn in turns.items():
        (tmp_path / "slides" / name).mkdir(parents=True)
        for i, encoded in enumerate(bag.images()):
            turn(Image.open(io.BytesIO(encoded))).save(tmp_path / "slides" / name / f"{i:02d}.png")

    def spread(orientations):
        root = tmp_path / str(orientations)
        places = {"bags": road / "bags", "encoder": road / "encoder", "out": root / "features"}
        embed(EmbedConfig(**places, layer="h", orientations=orientations), Silent())
        fit = {"aggregator": "mean", "epochs": 3, "folds": 2, "ensemble": 1, "out": root / "model"}
        fit_mil(FitMilConfig(features=root / "features", encoder=road / "encoder", **fit), Silent())
        assert load_triage_model(root / "model").orientations == orientations
        worklist = rank(tmp_path / "slides", RankConfig(model=root / "model", out=root / "out"), Silent())
        odds = [np.log(slide.probability / (1 - slide.probability)) for slide in worklist.slides]
        return max(odds) - min(odds)

    # Not zero: resizing rounds a turned picture's pixels otherwise.
    assert spread(8) < spread(1) / 5


def test_key_instances_are_the_highest_scores_and_show_their_own_cell(road, slides, tmp_path):
    worklist = rank(slides, settings(road, tmp_path / "out", top=5), Silent())
    model = load_triage_model(road / "model")
    for slide in worklist.slides:
        if slide.call is Call.NOT_ASSESSED:
            continue
        scores = [cell.score for cell in slide.key_instances]
        assert len(scores) == 5
        assert scores == sorted(scores, reverse=True)
        assert all(cell.image.startswith(b"\xff\xd8") for cell in slide.key_instances)
        assert sum(slide.score_shares) == pytest.approx(1)
    row = read_manifest(road / "bags").select("test")[0]
    bag = open_bag(road / "bags" / row.path)
    features = next((road / "features").glob(f"{row.bag_id}.h5"))
    with h5py.File(features) as file:
        scores = model.ensemble.assess(file["features"][:]).scores
    best = bag.instance_ids[int(np.argmax(scores))]
    slide = next(s for s in worklist.slides if s.slide == row.path)
    assert slide.key_instances[0].instance_id == best


def test_an_unreadable_cell_is_counted_and_shown(road, tmp_path):
    folder = tmp_path / "slides"
    row = read_manifest(road / "bags").select("test")[0]
    images = open_bag(road / "bags" / row.path).images()
    cells = [Instance(f"c{i}", image) for i, image in enumerate(images)]
    cells[3] = Instance("c3", images[3][:200])
    write_bag(folder / "one.h5", BagInfo("one", 0), cells)
    (slide,) = rank(folder, settings(road, tmp_path / "out"), Silent()).slides
    assert slide.n_unreadable == 1
    assert slide.n_instances == len(images) - 1
    assert any("c3" in caution for caution in slide.cautions)


def test_a_second_run_embeds_nothing_and_says_the_same(road, slides, tmp_path, monkeypatch):
    first = rank(slides, settings(road, tmp_path / "out"), Silent())

    def refuse(*_, **__):
        raise AssertionError("a finished slide was embedded again")

    monkeypatch.setattr(Embedder, "embedded", refuse)
    # A comment changes the fingerprint of the source; it must not cost the work of days.
    monkeypatch.setattr("cytomil.cards.code_fingerprint", lambda *_: "0" * 64)
    second = rank(slides, settings(road, tmp_path / "out"), Silent())
    assert second.slides == first.slides
    monkeypatch.setattr("cytomil.triage.result_cache.RESULT_VERSION", 10**6)
    with pytest.raises(AssertionError, match="embedded again"):
        rank(slides, settings(road, tmp_path / "out"), Silent())


def test_a_changed_slide_is_read_again(road, tmp_path):
    folder = tmp_path / "slides"
    shutil.copytree(road / "bags", folder)
    name = read_manifest(road / "bags").rows[0].path
    before = {s.slide: s.probability for s in rank(folder, settings(road, tmp_path / "out"), Silent()).slides}
    shutil.copy(folder / read_manifest(road / "bags").rows[1].path, folder / name)
    after = {s.slide: s.probability for s in rank(folder, settings(road, tmp_path / "out"), Silent()).slides}
    assert after[name] == before[read_manifest(road / "bags").rows[1].path]


def test_the_label_in_a_bag_file_is_not_looked_at(road, tmp_path):
    row = read_manifest(road / "bags").select("test")[0]
    bag = open_bag(road / "bags" / row.path)
    cells = [Instance(i, image) for i, image in zip(bag.instance_ids, bag.images(), strict=True)]
    for name, label in (("a", 0), ("b", 1)):
        write_bag(tmp_path / "slides" / f"{name}.h5", BagInfo(name, label), cells)
    one, other = rank(tmp_path / "slides", settings(road, tmp_path / "out"), Silent()).slides
    assert one.probability == other.probability


def test_files_on_disk_agree_with_the_worklist_whatever_the_names(road, slides, tmp_path):
    worklist = rank(slides, settings(road, tmp_path / "out", top=3), Silent())
    report = write_worklist(worklist, tmp_path / "out")
    document = json.loads((tmp_path / "out" / "triage.json").read_text())
    assert set(document.pop("files_sha256")) == {"report.html", "triage.csv"}
    assert is_sealed(json.loads((tmp_path / "out" / "triage.json").read_text()))
    del document["sha256_of_this"]
    assert document == json.loads(json.dumps(to_document(worklist)))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "triage.csv").read_text(encoding="utf-8-sig"))))
    assert [from_text_cell(row["slide"]) for row in rows] == [slide.slide for slide in worklist.slides]
    assert [from_text_cell(row["slide"]) for row in rows] == [slide["slide"] for slide in document["slides"]]
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "-", "@"))]
    assert "<img src=x" not in report.read_text()
    assert not list((tmp_path / "out").glob(".*partial"))


def test_what_cannot_be_ranked_at_all_is_one_clear_error(road, tmp_path):
    with pytest.raises(NotFoundError, match="does not exist"):
        rank(tmp_path / "nowhere", settings(road, tmp_path / "out"), Silent())
    (tmp_path / "void").mkdir()
    with pytest.raises(NotFoundError, match="holds no slides"):
        rank(tmp_path / "void", settings(road, tmp_path / "out"), Silent())
    with pytest.raises(NotFoundError, match="fit-mil"):
        rank(road / "bags", RankConfig(model=tmp_path / "no-model", out=tmp_path / "out"), Silent())


@pytest.mark.parametrize("victim", ["triage.json", "aggregator.safetensors", "encoder/encoder.safetensors"])
def test_a_damaged_model_is_refused(road, tmp_path, victim):
    broken = tmp_path / "model"
    shutil.copytree(road / "model", broken)
    content = (broken / victim).read_bytes()
    (broken / victim).write_bytes(content[: len(content) // 2])
    with pytest.raises(TriageModelError, match=r"damaged|missing|not the file"):
        rank(road / "bags", RankConfig(model=broken, out=tmp_path / "out"), Silent())


def test_a_model_that_was_shown_instance_labels_is_refused(road, tmp_path):
    ceiling = tmp_path / "ceiling"
    chosen = {"method": "fully-supervised", "with_instance_labels": True}
    chosen |= {"epochs": 1, "batch_size": 32, "image_size": 16, "weights": "none"}
    pretrain(PretrainConfig(bags=road / "bags", out=ceiling / "encoder", **chosen), Silent())
    embed(EmbedConfig(bags=road / "bags", encoder=ceiling / "encoder", out=ceiling / "features"), Silent())
    where = {"features": ceiling / "features", "encoder": ceiling / "encoder", "out": ceiling / "model"}
    model = fit_mil(FitMilConfig(epochs=1, folds=2, ensemble=1, **where), Silent())
    assert model.card.uses_instance_labels is True
    with pytest.raises(TriageModelError, match=r"instance labels.*fully-supervised.*ceiling"):
        rank(road / "bags", RankConfig(model=ceiling / "model", out=tmp_path / "out"), Silent())


def test_the_triage_model_is_portable(road, tmp_path):
    moved = tmp_path / "elsewhere" / "model"
    shutil.copytree(road / "model", moved)
    assert load_triage_model(moved).encoder.sha256 == load_bundle(road / "encoder").sha256
    assert str(road) not in (moved / "aggregator.safetensors").read_bytes().decode("latin-1")


def test_a_file_name_that_is_not_utf8_is_no_hindrance(road, tmp_path):
    row = read_manifest(road / "bags").select("test")[0]
    folder = tmp_path / "slides" / "old zip"
    folder.mkdir(parents=True)
    for i, image in enumerate(open_bag(road / "bags" / row.path).images()):
        (folder / os.fsdecode(b"M\xfcller %d.jpg" % i)).write_bytes(image)
    worklist = rank(tmp_path / "slides", settings(road, tmp_path / "out"), Silent())
    write_worklist(worklist, tmp_path / "out")
    assert worklist.slides[0].probability is not None
    (slide,) = json.loads((tmp_path / "out" / "triage.json").read_text())["slides"]
    assert "M\\xfcller" in slide["key_instances"][0]["instance_id"]


def cell_pngs(road, n):
    bag = open_bag(road / "bags" / read_manifest(road / "bags").select("test")[0].path)
    return [Image.open(io.BytesIO(image)).convert("RGB") for image in bag.images()[:n]]


def save_cells(folder, cells, suffix="png", **options):
    folder.mkdir(parents=True)
    for i, cell in enumerate(cells):
        cell.save(folder / f"{i:02d}.{suffix}", **options)


def test_the_same_cells_in_another_lossless_format_are_the_same_slide(road, tmp_path):
    cells = cell_pngs(road, 14)
    save_cells(tmp_path / "slides" / "png", cells)
    save_cells(tmp_path / "slides" / "webp", cells, "webp", lossless=True)
    save_cells(tmp_path / "elsewhere", cells)
    (tmp_path / "slides" / "linked").mkdir()
    (tmp_path / "slides" / "linked" / "cells").symlink_to(tmp_path / "elsewhere")
    slides = rank(tmp_path / "slides", settings(road, tmp_path / "out"), Silent()).slides
    assert {slide.n_instances for slide in slides} == {14}
    assert len({slide.probability for slide in slides}) == 1


def test_whatever_is_left_out_of_a_cell_folder_is_a_caution_with_its_reason(road, tmp_path):
    folder = tmp_path / "slides" / "s"
    save_cells(folder, cell_pngs(road, 12))
    (folder / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (folder / "b.svs").write_bytes(b"II*\0")
    (folder / "c.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "notes.txt").write_text("seen by two readers")
    (slide,) = rank(tmp_path / "slides", settings(road, tmp_path / "out"), Silent()).slides
    assert (slide.n_instances, slide.n_unreadable) == (12, 3)
    assert any("3 of 15 cells could not be read (first: a.heic: not a JPEG" in one for one in slide.cautions)


@pytest.mark.parametrize(("n", "call"), [(1, Call.NOT_ASSESSED), (2, Call.REVIEW), (9, Call.REVIEW)])
def test_few_cells_are_never_a_sure_call(road, tmp_path, n, call):
    save_cells(tmp_path / "slides" / "s", cell_pngs(road, n))
    (slide,) = rank(tmp_path / "slides", settings(road, tmp_path / "out"), Silent()).slides
    assert slide.call is call
    assert "few cells" in slide.look_at


def test_whole_fields_in_a_cell_folder_are_not_scored(road, tmp_path):
    save_cells(tmp_path / "slides" / "s", [Image.new("RGB", (640, 480), (200, 180, shade)) for shade in range(12)])
    (slide,) = rank(tmp_path / "slides", settings(road, tmp_path / "out"), Silent()).slides
    assert slide.call is Call.NOT_ASSESSED
    assert "looks like a whole field" in slide.reason


def test_square_images_as_large_as_fields_are_a_caution(road, tmp_path):
    save_cells(tmp_path / "slides" / "s", [cell.resize((512, 512)) for cell in cell_pngs(road, 10)])
    (slide,) = rank(tmp_path / "slides", settings(road, tmp_path / "out"), Silent()).slides
    assert slide.call is not Call.NOT_ASSESSED
    assert any("as large as whole fields (512×512 px)" in one for one in slide.cautions)


@pytest.mark.parametrize("out", ["triage", "any other name", "."])
def test_its_own_output_below_the_slides_is_no_slide(road, tmp_path, out):
    folder = tmp_path / "slides"
    save_cells(folder / "s", cell_pngs(road, 10))
    for _ in range(2):
        worklist = rank(folder, settings(road, folder / out), Silent())
        write_worklist(worklist, folder / out)
        assert [slide.slide for slide in worklist.slides] == ["s"]
    assert [slide.slide for slide in rank(folder, settings(road, tmp_path / "out"), Silent()).slides] == ["s"]


def test_a_broken_link_is_told_as_one(road, tmp_path):
    save_cells(tmp_path / "slides" / "s", cell_pngs(road, 10))
    (tmp_path / "slides" / "gone.svs").symlink_to(tmp_path / "nowhere.svs")
    slide = next(s for s in rank(tmp_path / "slides", settings(road, tmp_path / "out"), Silent()).slides if s.reason)
    assert slide.slide == "gone.svs"
    assert "a link to a file that does not exist" in slide.reason


def test_a_pipe_is_not_waited_for(road, tmp_path):
    save_cells(tmp_path / "slides" / "s", cell_pngs(road, 10))
    os.mkfifo(tmp_path / "slides" / "pipe.svs")
    slide = next(s for s in rank(tmp_path / "slides", settings(road, tmp_path / "out"), Silent()).slides if s.reason)
    assert (slide.slide, slide.reason) == ("pipe.svs", "is not a regular file.")


def test_folders_whose_names_are_not_utf8(road, tmp_path):
    folder, out = (tmp_path / os.fsdecode(name) for name in (b"slides-\xe9", b"out-\xe9"))
    save_cells(folder / "s", cell_pngs(road, 10))
    write_worklist(rank(folder, settings(road, out), Silent()), out)
    document = json.loads((out / "triage.json").read_text(encoding="utf-8"))
    assert document["folder"].endswith("slides-\\xe9")
    assert (out / "report.html").read_text(encoding="utf-8")


def test_cells_of_bags_and_folders_are_counted_beforehand_and_as_they_are_read(road, tmp_path):
    save_cells(tmp_path / "slides" / "s", cell_pngs(road, 5))
    shutil.copy(road / "bags" / read_manifest(road / "bags").select("test")[0].path, tmp_path / "slides" / "t.h5")
    told = Counting()
    rank(tmp_path / "slides", settings(road, tmp_path / "out"), told)
    assert (told.work.total, told.work.unit) == (21, "cells")
    assert (told.steps, told.skipped) == ([5, 16], [])


def test_slides_finished_before_or_at_fault_are_skipped_and_the_count_is_whole(road, slides, tmp_path):
    shutil.rmtree(slides / "empty")
    for whole_slide in ("words.svs", "mystery.xyz"):
        (slides / whole_slide).unlink(missing_ok=True)
    first, second = Counting(), Counting()
    rank(slides, settings(road, tmp_path / "out"), first)
    rank(slides, settings(road, tmp_path / "out"), second)
    assert first.steps == [16] * 5
    assert first.work.total == sum(first.steps) + sum(first.skipped)
    assert second.steps == []
    assert sum(second.skipped) == second.work.total


def test_beside_whole_slides_nothing_else_counts(tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "a.png").write_bytes(b"")
    (tmp_path / "a.svs").write_bytes(b"")
    found = [SlideEntry("a", tmp_path / "a.svs"), SlideEntry("cells", tmp_path / "cells")]
    with ReadingProcess() as process:
        work, units = work_on(found, process)
    assert (work.total, work.unit, units) == (1, "whole slides", [1, 0])


def test_small_slides_stay_as_they_are_and_the_gallery_of_a_large_one_hardly_changes(road, tmp_path):
    images = [image for path in sorted((road / "bags").glob("*.h5")) for image in open_bag(path).images()]
    slides = tmp_path / "slides"
    slides.mkdir()
    for name, n in (("small", 40), ("large", MANY_CELLS + 600)):
        cells = (Instance(f"c{i:04d}", images[(7 * i) % len(images)]) for i in range(n))
        write_bag(slides / f"{name}.h5", BagInfo(name, 0), cells)

    def ranked(fraction):
        settings = RankConfig(
            model=road / "model",
            out=tmp_path / f"out-{fraction}",
            second_look=fraction,
            device="cpu",
            engine="eager",
            top=100,
        )
        return {slide.slide: slide for slide in rank(slides, settings, Silent()).slides}

    whole, quick = ranked(1), ranked(0.2)
    assert quick["small.h5"] == whole["small.h5"]
    shown = [{cell.instance_id for cell in found["large.h5"].key_instances} for found in (whole, quick)]
    assert len(shown[0] & shown[1]) >= 80
    assert quick["large.h5"].call == whole["large.h5"].call
    assert quick["large.h5"].novelty_p == whole["large.h5"].novelty_p
    assert quick["large.h5"].score_shares != whole["large.h5"].score_shares
