from __future__ import annotations

import json
import os
import shutil

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cytomil.bags import open_bag, read_manifest
from cytomil.bags.config import MakeBagsConfig
from cytomil.bags.instance_labels import read_instance_labels
from cytomil.bags.make import make_bags
from cytomil.bags.patients import LabelledSlide
from cytomil.bags.slide_dir import split_by_patient
from cytomil.errors import BagFileError, NotFoundError, SettingsError, TableError
from cytomil.progress import Silent

SPLIT = "slide,label,patient,split\ns1,0,p1,train\ns2,1,p2,train\ns3,0,p3,test\ns4,1,p4,test\n"


@pytest.fixture
def slides(tmp_path, make_slide_folders):
    return make_slide_folders(tmp_path / "slides", ["s1", "s2", "s3", "s4"])


@pytest.fixture
def make(tmp_path):
    """Make bags of slide folders and the text of a labels file; returns what make_bags does."""

    def run(root, labels=SPLIT, **changes):
        file = tmp_path / "labels.csv"
        if labels is not None:
            file.write_text(labels, encoding="utf-8")
        chosen = MakeBagsConfig(source=str(root), labels=file, out=tmp_path / "bags", **changes)
        return make_bags(chosen, Silent())

    return run


def problems_of(made):
    return {problem.where: problem.reason for problem in made.problems}


class TestBags:
    def test_every_slide_becomes_a_bag(self, make, slides):
        made = make(slides)
        rows = {row.bag_id: row for row in read_manifest(made.folder).rows}
        assert {name: (row.split, row.label, row.patient_id) for name, row in rows.items()} == {
            "s1": ("train", 0, "p1"),
            "s2": ("train", 1, "p2"),
            "s3": ("test", 0, "p3"),
            "s4": ("test", 1, "p4"),
        }
        for name, row in rows.items():
            bag = open_bag(made.folder / row.path)
            assert (bag.info.bag_id, bag.info.label, bag.info.patient_id) == (name, row.label, row.patient_id)
            assert bag.instance_ids == tuple(f"cell-{i}.png" for i in range(4))
            assert bag.images() == [(slides / name / cell).read_bytes() for cell in bag.instance_ids]
            assert set(read_instance_labels(bag.path).values()) == {-1}
            assert row.witness_rate is None
            assert row.n_instances == 4
        assert made.problems == ()

    def test_cells_may_lie_at_any_depth(self, make, slides, cell_image):
        (slides / "s1" / "a" / "b").mkdir(parents=True)
        (slides / "s1" / "a" / "b" / "deep.png").write_bytes(cell_image(77))
        assert "a/b/deep.png" in open_bag(make(slides).folder / "s1.h5").instance_ids

    def test_an_image_that_lies_twice_in_a_slide_counts_once(self, make, slides):
        shutil.copy(slides / "s1" / "cell-0.png", slides / "s1" / "copy.png")
        made = make(slides)
        assert len(open_bag(made.folder / "s1.h5")) == 4

    def test_same_seed_same_bags(self, make, slides):
        labels = "slide,label\ns1,0\ns2,1\ns3,0\ns4,1\n"
        first, second = ({row.bag_id: row for row in make(slides, labels, seed=5).rows} for _ in "ab")
        assert first == second

    def test_a_file_name_that_is_not_utf8_is_no_hindrance(self, make, slides):
        (slides / "s1" / "cell-0.png").rename(slides / "s1" / os.fsdecode(b"M\xfcller.png"))
        (slides / os.fsdecode(b"unlisted-\xfc")).mkdir()
        made = make(slides)
        assert "M\\xfcller.png" in open_bag(made.folder / "s1.h5").instance_ids
        assert "has no line in" in problems_of(made)["unlisted-\\xfc"]


def test_a_labels_file_that_is_not_there(make, slides):
    with pytest.raises(NotFoundError, match=r"labels\.csv does not exist"):
        make(slides, None)


def test_a_wrong_labels_file_leaves_no_bags(make, slides):
    with pytest.raises(TableError, match=r"labels\.csv, line 3: label '2'"):
        make(slides, "slide,label\ns1,0\ns2,2\n")
    assert not (slides.parent / "bags").exists()


class TestSplit:
    SLIDES = st.lists(st.tuples(st.sampled_from([0, 1]), st.integers(0, 6)), min_size=2, max_size=16)

    @given(drawn=SLIDES, test_fraction=st.sampled_from([0.1, 0.25, 0.5, 0.75]), seed=st.integers(0, 9))
    @settings(max_examples=80)
    def test_no_patient_on_both_sides_and_both_labels_on_each(self, drawn, test_fraction, seed):
        slides = [LabelledSlide(f"s{i}", label, f"p{p}" if p else "") for i, (label, p) in enumerate(drawn)]
        for label in (0, 1):
            patients = {slide.patient_id or slide.slide for slide in slides if slide.label == label}
            assume(len(patients) >= 2)
        done = split_by_patient(slides, test_fraction, seed)
        assert [(s.slide, s.label, s.patient_id) for s in done] == [(s.slide, s.label, s.patient_id) for s in slides]
        assert {(s.split, s.label) for s in done} == {("train", 0), ("train", 1), ("test", 0), ("test", 1)}
        sides = {}
        for slide in done:
            if slide.patient_id:
                sides.setdefault(slide.patient_id, set()).add(slide.split)
        assert all(len(side) == 1 for side in sides.values())
        assert done == split_by_patient(slides, test_fraction, seed)

    @pytest.mark.parametrize("test_fraction", [0.1, 0.25, 0.5, 0.75, 0.9])
    def test_about_the_asked_share_is_for_testing(self, test_fraction):
        slides = [LabelledSlide(f"s{i}", i % 2) for i in range(40)]
        done = split_by_patient(slides, test_fraction, 0)
        assert sum(slide.split == "test" for slide in done) == pytest.approx(40 * test_fraction, abs=2)

    def test_the_seed_decides(self):
        slides = [LabelledSlide(f"s{i}", i % 2) for i in range(20)]
        assert len({tuple(s.split for s in split_by_patient(slides, 0.25, seed)) for seed in range(6)}) > 1

    def test_a_given_split_is_kept(self):
        slides = [LabelledSlide("s1", 0, "p", "test"), LabelledSlide("s2", 0, "q", "train")]
        assert split_by_patient(slides, 0.25, 0) == slides

    def test_too_few_patients_of_a_label(self, make, slides):
        with pytest.raises(BagFileError, match="1 patient with label 1: at least 2"):
            make(slides, "slide,label,patient\ns1,0,p\ns2,0,q\ns3,1,r\ns4,1,r\n")

    def test_bags_follow_the_split(self, make, slides):
        made = make(slides, "slide,label,patient\ns1,0,p\ns2,1,p\ns3,0,q\ns4,1,q\n")
        rows = {row.bag_id: row for row in made.rows}
        assert rows["s1"].split == rows["s2"].split != rows["s3"].split == rows["s4"].split


class TestProblems:
    """What is wrong with one slide is listed; the others go on."""

    def test_a_missing_folder(self, make, slides):
        shutil.rmtree(slides / "s1")
        made = make(slides)
        assert "no such folder" in problems_of(made)["s1"]
        assert {row.bag_id for row in made.rows} == {"s2", "s3", "s4"}
        assert not (made.folder / "s1.h5").exists()

    def test_a_file_in_a_folders_place(self, make, slides):
        shutil.rmtree(slides / "s1")
        (slides / "s1").write_text("x")
        assert "no such folder" in problems_of(make(slides))["s1"]

    def test_a_folder_without_a_line(self, make, slides):
        (slides / "s5").mkdir()
        (slides / ".thumbnails").mkdir()
        assert problems_of(make(slides)) == {"s5": "has no line in labels.csv"}

    def test_an_empty_folder(self, make, slides):
        shutil.rmtree(slides / "s4")
        (slides / "s4").mkdir()
        made = make(slides)
        assert "holds no cell images" in problems_of(made)["s4"]
        assert len(made.rows) == 3

    def test_a_slide_with_unreadable_images_alone(self, make, slides):
        for i, content in enumerate((b"", b"text", b"\xff\xd8\xff\xe0cut", b"\x89PNG\r\n\x1a\n")):
            (slides / "s2" / f"cell-{i}.png").write_bytes(content)
        made = make(slides)
        assert "none of its images" in problems_of(made)["s2"]
        assert {f"s2/cell-{i}.png" for i in range(4)} < set(problems_of(made))
        assert {row.bag_id for row in made.rows} == {"s1", "s3", "s4"}
        assert {path.name for path in made.folder.glob("*.h5")} == {"s1.h5", "s3.h5", "s4.h5"}

    def test_one_unreadable_image(self, make, slides):
        (slides / "s2" / "cell-1.png").write_text("not an image")
        made = make(slides)
        assert set(problems_of(made)) == {"s2/cell-1.png"}
        assert open_bag(made.folder / "s2.h5").instance_ids == ("cell-0.png", "cell-2.png", "cell-3.png")

    def test_every_slide_is_at_fault(self, make, slides):
        for name in ("s1", "s2", "s3", "s4"):
            shutil.rmtree(slides / name)
        with pytest.raises(BagFileError, match="none of the slides"):
            make(slides)
        assert not (slides.parent / "bags").exists()


class TestWords:
    WORDS = "slide,label,split\ns1,Healthy,train\ns2,APL,train\ns3, healthy ,test\ns4,aml,test\n"

    def test_labels_in_words(self, make, slides):
        made = make(slides, self.WORDS, positive=("AML", "APL"), negative=("healthy",))
        assert {row.bag_id: row.label for row in made.rows} == {"s1": 0, "s2": 1, "s3": 0, "s4": 1}

    def test_one_side_alone_is_refused(self, make, slides):
        with pytest.raises(SettingsError, match="both --positive and --negative"):
            make(slides, self.WORDS, positive=("AML", "APL"))

    def test_words_without_a_labels_file_are_refused(self, tmp_path, slides):
        chosen = MakeBagsConfig(source=str(slides), out=tmp_path / "bags", positive=("a",), negative=("b",))
        with pytest.raises(SettingsError, match="--labels"):
            make_bags(chosen, Silent())


class TestUnicode:
    NFD, NFC = "e\u0301", "\u00e9"

    @pytest.mark.parametrize(("on_disk", "in_file"), [(NFD, NFC), (NFC, NFD)])
    def test_a_name_is_the_same_in_either_form(self, make, slides, on_disk, in_file):
        (slides / "s1").rename(slides / on_disk)
        made = make(slides, SPLIT.replace("s1", in_file))
        assert made.problems == ()
        assert {row.bag_id for row in made.rows} == {self.NFC, "s2", "s3", "s4"}

    def test_two_folders_of_one_name_are_ambiguous(self, make, slides):
        (slides / "s1").rename(slides / self.NFD)
        shutil.copytree(slides / "s2", slides / self.NFC)
        problems = problems_of(make(slides, SPLIT.replace("s1", self.NFC)))
        assert list(problems) == [self.NFC]
        assert "rename one" in problems[self.NFC]


class TestLostLabels:
    def test_a_split_that_loses_a_label_is_named(self, make, slides):
        shutil.rmtree(slides / "s4")
        made = make(slides)
        (warning,) = made.warnings
        assert "test split has no positive bag (label 1): none of 1 could be used" in warning
        assert json.loads((made.folder / "make-bags.json").read_text())["warnings"] == [warning]

    def test_a_split_that_loses_all(self, make, slides):
        for name in ("s1", "s2"):
            shutil.rmtree(slides / name)
        (warning,) = make(slides).warnings
        assert "train split has no bag" in warning

    def test_a_split_column_without_a_label(self, make, slides):
        made = make(slides, SPLIT.replace("p4,test", "p4,train"))
        (warning,) = made.warnings
        assert "test split has no positive bag (label 1): labels.csv has none" in warning

    def test_whole_splits_are_not_warned_of(self, make, slides):
        assert make(slides).warnings == ()


def test_unknown_patients_are_said(make, slides):
    assert make(slides).notes == ()
    (note,) = make(slides, SPLIT.replace(",p1,", ",,")).notes
    assert note.startswith("1 of 4 slides have no patient")


class TestLeftOut:
    def test_what_cannot_be_a_cell_is_listed_and_litter_is_not(self, make, slides, tmp_path):
        (slides / "s1" / "scan.svs").touch()
        (slides / "s1" / "gone.png").symlink_to(tmp_path / "nowhere.png")
        (slides / "s1" / "mystery.xyz").write_text("?")
        (slides / "s1" / "Thumbs.db").touch()
        (slides / "s1" / "notes.txt").touch()
        (slides / "@eaDir").mkdir()
        (slides / "labels.xlsx").touch()
        assert sorted(problems_of(make(slides))) == ["s1/gone.png", "s1/mystery.xyz", "s1/scan.svs"]

    def test_a_slide_of_one_cell_is_not_learnt_from(self, make, slides, cell_image):
        shutil.rmtree(slides / "s1")
        (slides / "s1").mkdir()
        (slides / "s1" / "a.png").write_bytes(cell_image(777))
        made = make(slides)
        assert "too few cells: 1" in problems_of(made)["s1"]
        assert "s1" not in {row.bag_id for row in made.rows}


class TestLeakage:
    def test_an_image_of_a_training_slide_is_left_out_of_a_test_slide(self, make, slides):
        """Whatever the slides' names: the test slide gives way."""
        labels = "slide,label,split\ns1,0,test\ns2,1,test\ns3,0,train\ns4,1,train\n"
        shutil.copy(slides / "s3" / "cell-2.png", slides / "s1" / "same.png")
        made = make(slides, labels)
        assert set(problems_of(made)) == {"s1/same.png"}
        assert "train slide" in problems_of(made)["s1/same.png"]
        assert "same.png" not in open_bag(made.folder / "s1.h5").instance_ids
        assert len(open_bag(made.folder / "s3.h5")) == 4

    def test_no_image_stands_on_both_sides(self, make, slides):
        for source, target in (("s1/cell-0.png", "s3"), ("s2/cell-1.png", "s4"), ("s4/cell-3.png", "s1")):
            shutil.copy(slides / source, slides / target / f"copy-{source.replace('/', '-')}")
        made = make(slides)
        sides = {"train": set(), "test": set()}
        for row in made.rows:
            sides[row.split] |= set(open_bag(made.folder / row.path).images())
        assert not sides["train"] & sides["test"]
        assert len(made.problems) == 3

    def test_two_folders_of_the_same_cells_are_one_slide(self, make, slides):
        """Whatever the images are called, and whatever else lies there."""
        shutil.rmtree(slides / "s3")
        (slides / "s3").mkdir()
        for i in range(4):
            shutil.copy(slides / "s1" / f"cell-{i}.png", slides / "s3" / f"other-{i}.png")
        made = make(slides)
        assert problems_of(made) == {
            "s3": "a byte-identical copy of the train slide s1; left out. WARNING: the original differs "
            "(another patient). Correct the labels file"
        }
        assert {row.bag_id for row in made.rows} == {"s1", "s2", "s4"}
        (slides / "s3" / "Thumbs.db").write_bytes(b"litter")
        assert "a copy: 4 of its 4 cells are in the train slide s1" in problems_of(make(slides))["s3"]

    def test_a_folder_that_is_mostly_a_copy_is_left_out_whole(self, make, slides):
        for i in range(3):
            shutil.copy(slides / "s2" / f"cell-{i}.png", slides / "s4" / f"cell-{i}.png")
        made = make(slides)
        problems = problems_of(made)
        assert list(problems) == ["s4"]
        assert problems["s4"].startswith("a copy: 3 of its 4 cells are in the train slide s2")
        assert not (made.folder / "s4.h5").exists()

    def test_a_copy_within_a_split_is_left_out_too(self, make, slides):
        shutil.rmtree(slides / "s3")
        shutil.copytree(slides / "s1", slides / "s3")
        made = make(slides, "slide,label,split\ns1,0,train\ns3,0,train\ns2,1,train\ns4,1,test\n")
        assert problems_of(made) == {"s3": "a byte-identical copy of the train slide s1; left out"}

    def test_a_copy_does_not_take_a_place_in_a_drawn_split(self, make, slides):
        shutil.copytree(slides / "s1", slides / "s5")
        made = make(slides, "slide,label\ns1,0\ns2,1\ns3,0\ns4,1\ns5,0\n")
        assert set(problems_of(made)) == {"s5"}
        assert {(row.split, row.label) for row in made.rows} == {
            ("train", 0),
            ("train", 1),
            ("test", 0),
            ("test", 1),
        }

    def test_a_copy_with_another_label_is_refused(self, make, slides):
        shutil.rmtree(slides / "s4")
        shutil.copytree(slides / "s1", slides / "s4")
        with pytest.raises(TableError, match="s1 and s4 are the same slide, byte for byte, and are labelled 0 and 1"):
            make(slides)
