"""make-bags on labelled slides reads no finished slide again, and its result is that of an unbroken run to the byte."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageDraw

from cytomil.bags import labelled_slides, open_bag
from cytomil.bags.config import MakeBagsConfig
from cytomil.bags.make import make_bags
from cytomil.bags.whole_slides import ReadingSlides, files_of, unfinished
from cytomil.progress import Silent
from cytomil.workers.local import InProcess

LABELS = "slide,label,split\ns1,0,train\ns2,1,train\ns3,0,test\nf1,1,test\nf2,0,train\n"


def write_slide(path, seed):
    """Twenty-five purple discs on a pale field, 0.25 µm per pixel."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (320, 320), (236, 232, 238))
    pen = ImageDraw.Draw(image)
    for i in range(25):
        x, y = (60 * (i % 5) + 40 + rng.uniform(-4, 4), 60 * (i // 5) + 40 + rng.uniform(-4, 4))
        pen.ellipse((x - 14, y - 14, x + 14, y + 14), fill=(150, 90, 160))
    with tifffile.TiffWriter(path) as tiff:
        tags = {"resolution": (4e4, 4e4), "resolutionunit": "CENTIMETER"}
        tiff.write(np.asarray(image), tile=(128, 128), photometric="rgb", **tags)


@pytest.fixture
def slides(tmp_path, make_slide_folders):
    """Three whole slides and two folders of cells; one image of f2, for training, stands in f1 too."""
    root = make_slide_folders(tmp_path / "slides", ["f1", "f2"])
    for number, name in enumerate(("s1", "s2", "s3")):
        write_slide(root / f"{name}.tif", number)
    shutil.copy(root / "f2" / "cell-0.png", root / "f1" / "same.png")
    return root


@pytest.fixture
def read(monkeypatch):
    """The slides that are read, by name. They are read in this process, which can count them."""
    names = []
    workers = labelled_slides.open_workers
    monkeypatch.setattr(labelled_slides, "open_workers", lambda to, n: workers(to, n) if n > 1 else InProcess())
    finish = ReadingSlides._finish

    def noting(self, cores, one):
        names.append(one.info.bag_id)
        return finish(self, cores, one)

    monkeypatch.setattr(ReadingSlides, "_finish", noting)
    return names


@pytest.fixture
def make(tmp_path, slides):
    def run(labels=LABELS, out="bags", listener=None, **changes):
        (tmp_path / "labels.csv").write_text(labels)
        chosen = {"source": str(slides), "labels": tmp_path / "labels.csv", "out": tmp_path / out, "crop_px": 24}
        return make_bags(MakeBagsConfig(**(chosen | changes)), listener or Silent())

    return run


class EndingAfter(Silent):
    """Ctrl-C after so many slides."""

    def __init__(self, n):
        self.n = n

    def track(self, items, description, total=None, unit=""):
        for number, item in enumerate(items, start=1):
            yield item
            if description == "making bags" and number == self.n:
                raise KeyboardInterrupt


def interrupt(make, after=3, **changes):
    with pytest.raises(KeyboardInterrupt):
        make(listener=EndingAfter(after), **changes)


def bytes_of(folder: Path):
    """bags.csv, bags and pictures; the record names its moment, and cards are about this disk."""
    files = [folder / "bags.csv", *folder.glob("*.h5"), *folder.glob("qc/*")]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def test_an_interrupted_run_goes_on_to_the_bytes_of_an_unbroken_one(make, read, tmp_path):
    interrupt(make, after=2)
    assert not (tmp_path / "bags").exists()
    begun = list(read)
    read.clear()
    done = make()
    assert sorted(begun + read) == ["f1", "f2", "s1", "s2", "s3"]
    assert len(begun) == 2
    unbroken = make(out="unbroken")
    assert bytes_of(tmp_path / "bags") == bytes_of(tmp_path / "unbroken")
    assert done.problems == unbroken.problems
    assert {problem.where for problem in done.problems} == {"f1/same.png"}
    assert not unfinished(tmp_path / "bags").exists()


def test_an_interruption_leaves_the_bags_that_stood_there(make, tmp_path):
    make()
    before = bytes_of(tmp_path / "bags")
    interrupt(make, after=1, crop_px=32)
    assert bytes_of(tmp_path / "bags") == before


def test_two_processes_make_the_same_bytes(make, read, tmp_path):
    make(workers=1, out="one")
    assert len(read) == 5
    read.clear()
    make(workers=2, out="two")
    assert read == []  # by this process
    assert bytes_of(tmp_path / "two") == bytes_of(tmp_path / "one")


def test_what_one_number_of_processes_finished_serves_another(make, read):
    interrupt(make, workers=2)
    make(workers=1)
    assert len(read) <= 2


@pytest.mark.parametrize("finished", [False, True])
class TestChanges:
    """What changes between two runs is made anew, whether the first was interrupted or had finished."""

    @pytest.fixture
    def first(self, make, read, finished):
        make() if finished else interrupt(make, after=5)
        read.clear()

    @pytest.fixture(autouse=True)
    def same_as_unbroken(self, first, make, tmp_path):
        self.again = {}
        yield
        make(out="unbroken", **self.again)
        assert bytes_of(tmp_path / "bags") == bytes_of(tmp_path / "unbroken")

    def run(self, make, **changes):
        self.again = changes
        return make(**changes)

    def test_nothing(self, make, read, finished):
        self.run(make)
        # A bag from which a shared image was left out is not all that its slide holds.
        assert read == (["f1"] if finished else [])

    def test_the_source_of_cytomil(self, make, read, finished, monkeypatch):
        monkeypatch.setattr("cytomil.cards.code_fingerprint", lambda *_: "0" * 64)
        self.run(make)
        assert read == (["f1"] if finished else [])

    def test_the_version_of_the_cells(self, make, read, monkeypatch):
        monkeypatch.setattr("cytomil.bags.whole_slides.CELLS_VERSION", 10**6)
        self.run(make)
        assert {"s1", "s2", "s3"} <= set(read)

    def test_a_setting(self, make, read):
        self.run(make, crop_px=32)
        assert {"s1", "s2", "s3"} <= set(read) <= {"s1", "s2", "s3", "f1"}

    def test_a_label_is_written_without_reading_the_slide(self, make, read, tmp_path):
        made = self.run(make, labels=LABELS.replace("s2,1", "s2,0").replace("s3,0", "s3,1"))
        assert set(read) <= {"f1"}
        assert {row.bag_id: row.label for row in made.rows} == {"s1": 0, "s2": 0, "s3": 1, "f1": 1, "f2": 0}
        assert open_bag(tmp_path / "bags" / "s3.h5").info.label == 1

    def test_a_slide(self, make, read, slides):
        write_slide(slides / "s2.tif", 99)
        self.run(make)
        assert {"s2"} <= set(read) <= {"s2", "f1"}

    def test_a_cell_of_a_folder(self, make, read, slides, cell_image):
        (slides / "f2" / "cell-1.png").write_bytes(cell_image(77))
        self.run(make)
        assert {"f2"} <= set(read) <= {"f2", "f1"}

    def test_a_slide_that_left_the_labels_leaves_the_bags(self, make, read, tmp_path):
        made = self.run(make, labels=LABELS.replace("s2,1,train\n", ""))
        assert {problem.where for problem in made.problems} == {"f1/same.png", "s2.tif"}
        assert {file.stem for file in (tmp_path / "bags").glob("*.h5")} == {"s1", "s3", "f1", "f2"}
        assert set(read) <= {"f1"}

    def test_the_other_side_of_the_split_gives_up_the_image_that_both_have(self, make, read):
        """An image is left out while bags are put together, so no earlier run's choice stays."""
        moved = LABELS.replace("f1,1,test", "f1,1,train").replace("f2,0,train", "f2,0,test")
        made = self.run(make, labels=moved)
        assert [problem.where for problem in made.problems] == ["f2/cell-0.png"]

    def test_a_bag_that_was_altered_is_made_again(self, make, read, tmp_path, finished):
        folder = tmp_path / "bags" if finished else unfinished(tmp_path / "bags")
        whole = (folder / "s1.h5").read_bytes()
        (folder / "s1.h5").write_bytes(whole[:-1])
        self.run(make)
        assert "s1" in read


def test_a_resolution_makes_only_those_slides_anew_that_needed_it(make, read, slides):
    with tifffile.TiffWriter(slides / "s1.tif") as tiff:
        tiff.write(np.full((320, 320, 3), 230, np.uint8), tile=(128, 128), photometric="rgb")
    made = make(mpp=0.25)
    assert "no cells found" in {problem.where: problem.reason for problem in made.problems}["s1"]
    read.clear()
    make(mpp=0.3)
    assert set(read) == {"s1", "f1"}  # s1's lack of cells was a finding, not a fault


@pytest.mark.parametrize("workers", [1, 2])
def test_a_slide_that_could_not_be_read_is_listed_and_tried_again(make, read, slides, workers):
    whole = (slides / "s1.tif").read_bytes()
    (slides / "s1.tif").write_bytes(whole[: len(whole) // 2])
    made = make(workers=workers)
    assert {problem.where for problem in made.problems} == {"s1", "f1/same.png"}
    assert {row.bag_id for row in made.rows} == {"s2", "s3", "f1", "f2"}
    read.clear()
    make()
    assert "s1" in read


def test_a_slide_s_files_are_told_apart_by_content_and_by_time(slides):
    before = files_of(slides / "s1.tif")
    status = (slides / "s1.tif").stat()
    assert before.size == status.st_size
    content = (slides / "s1.tif").read_bytes()
    (slides / "s1.tif").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(slides / "s1.tif", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert files_of(slides / "s1.tif") != before
