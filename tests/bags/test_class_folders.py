from __future__ import annotations

import io
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from cytomil.bags import open_bag, read_manifest
from cytomil.bags.config import MakeBagsConfig
from cytomil.bags.instance_labels import read_instance_labels, read_instance_sources
from cytomil.bags.make import make_bags
from cytomil.errors import NotEnoughCellsError, NotFoundError
from cytomil.progress import Silent

# Two training and two test bags of ten: 34 normal and 6 abnormal cells.
NEEDED = {"LYT": 20, "NGS": 14, "BLA": 4, "PMO": 2}


@pytest.fixture
def make(tmp_path):
    """Make bags of class folders into a folder of tmp_path; returns what make_bags does."""

    def run(root, out="bags", **changes):
        chosen = {
            "normal": ("LYT", "NGS"),
            "abnormal": ("BLA", "PMO"),
            "bag_size": 10,
            "witness_rate": 0.3,
            "train_bags": 2,
            "test_bags": 2,
        }
        return make_bags(MakeBagsConfig(source=str(root), out=tmp_path / out, **(chosen | changes)), Silent())

    return run


@pytest.fixture
def cells(tmp_path, make_class_folders):
    """Class folders that hold a few more cells than needed."""
    return make_class_folders(tmp_path / "cells", {name: n + 6 for name, n in NEEDED.items()})


def all_bags(made):
    return [open_bag(made.folder / row.path) for row in made.rows]


def images_by_split(made):
    manifest = read_manifest(made.folder)
    return {
        split: [image for row in manifest.select(split) for image in open_bag(manifest.file_of(row)).images()]
        for split in ("train", "test")
    }


class TestBags:
    def test_are_full_half_positive_and_true_to_their_classes(self, make, cells):
        made = make(cells)
        assert [(row.split, row.n_instances) for row in made.rows] == [("train", 10)] * 2 + [("test", 10)] * 2
        assert sorted((row.split, row.label) for row in made.rows) == [
            ("test", 0),
            ("test", 1),
            ("train", 0),
            ("train", 1),
        ]
        for row in made.rows:
            labels = read_instance_labels(made.folder / row.path)
            assert sum(labels.values()) == 3 * row.label
            for name, source in read_instance_sources(made.folder / row.path).items():
                assert (source.split("/")[0] in ("BLA", "PMO")) == bool(labels[name])
                assert (cells / source).is_file()
        assert made.problems == ()
        assert made.notes == ()

    def test_hold_the_files_bytes(self, make, cells):
        made = make(cells)
        for row in made.rows:
            bag = open_bag(made.folder / row.path)
            sources = read_instance_sources(made.folder / row.path)
            originals = [(cells / sources[name]).read_bytes() for name in bag.instance_ids]
            assert bag.images() == originals

    def test_draw_on_every_depth_of_a_class(self, make, cells):
        sources = [source for bag in all_bags(make(cells)) for source in read_instance_sources(bag.path).values()]
        assert any("/0001-1000/" in source for source in sources)
        assert any("/0001-1000/" not in source for source in sources)

    def test_no_cell_stands_twice(self, make, cells):
        images = [image for bag in all_bags(make(cells)) for image in bag.images()]
        assert len(set(images)) == len(images) == 40

    @pytest.mark.parametrize(("train", "test"), [(3, 1), (1, 0), (0, 3)])
    def test_odd_numbers_have_one_negative_more(self, make, cells, train, test):
        made = make(cells, train_bags=train, test_bags=test)
        for split, n in (("train", train), ("test", test)):
            labels = [row.label for row in made.rows if row.split == split]
            assert (len(labels), sum(labels)) == (n, n // 2)

    @pytest.mark.parametrize(("rate", "witnesses"), [(0.001, 1), (0.14, 1), (0.26, 3)])
    def test_a_rate_that_is_no_whole_number_of_cells_is_recorded_as_it_came_out(self, make, cells, rate, witnesses):
        made = make(cells, witness_rate=rate)
        for row in read_manifest(made.folder).rows:
            assert sum(read_instance_labels(made.folder / row.path).values()) == (witnesses if row.label else 0)
            assert row.witness_rate == pytest.approx(witnesses / 10 if row.label else 0.0)


class TestIdentifiers:
    def test_do_not_give_the_class_away(self, make, cells):
        for bag in all_bags(make(cells)):
            for name in bag.instance_ids:
                assert re.fullmatch("[0-9a-f]{16}", name)
            assert bag.info.source == "cells"
            visible = repr(bag)
            assert not [c for c in NEEDED if c in visible]

    def test_places_of_witnesses_vary(self, make, cells):
        places = [
            tuple(i for i, label in enumerate(read_instance_labels(bag.path).values()) if label)
            for seed in range(6)
            for bag in all_bags(make(cells, out=f"bags-{seed}", seed=seed))
            if bag.info.label
        ]
        assert len(set(places)) > len(places) // 2

    def test_order_does_not_follow_the_names_of_the_files(self, make, cells):
        negative = next(bag for bag in all_bags(make(cells)) if not bag.info.label)
        sources = list(read_instance_sources(negative.path).values())
        assert sources != sorted(sources)
        assert {source.split("/")[0] for source in sources} == {"LYT", "NGS"}


class TestSeed:
    def test_same_seed_same_bags(self, make, cells):
        first, second = (make(cells, out=name, seed=3) for name in ("a", "b"))
        assert [row.sha256 for row in first.rows] == [row.sha256 for row in second.rows]
        assert (first.folder / "bags.csv").read_bytes() == (second.folder / "bags.csv").read_bytes()

    def test_same_cells_elsewhere_same_bags(self, make, cells, tmp_path):
        moved = tmp_path / "elsewhere" / "cells"
        shutil.copytree(cells, moved)
        assert [row.sha256 for row in make(cells).rows] == [row.sha256 for row in make(moved).rows]

    def test_other_seed_other_bags(self, make, cells):
        first, second = (make(cells, out=name, seed=seed) for name, seed in (("a", 3), ("b", 4)))
        assert not {row.sha256 for row in first.rows} & {row.sha256 for row in second.rows}


class TestDuplicates:
    @pytest.mark.parametrize("seed", range(5))
    def test_byte_identical_images_are_taken_once(self, make, cells, seed):
        """Ten twins, in the same class, in another of the same side, and in one of the other side."""
        twins = 0
        for i in range(5):
            shutil.copy(cells / f"LYT/LYT_{2 * i:05d}.png", cells / f"LYT/twin_{i}.png")
            shutil.copy(cells / f"NGS/NGS_{2 * i:05d}.png", cells / f"LYT/other_{i}.png")
            twins += 2
        shutil.copy(cells / "BLA/BLA_00000.png", cells / "PMO/twin.png")
        shutil.copy(cells / "BLA/BLA_00002.png", cells / "NGS/mistaken.png")
        made = make(cells, seed=seed)
        images = [image for bag in all_bags(made) for image in bag.images()]
        assert len(set(images)) == len(images) == 40
        sides = images_by_split(made)
        assert not set(sides["train"]) & set(sides["test"])

    def test_are_told(self, make, make_class_folders, tmp_path):
        """Every cell is needed, so that every twin is met."""
        root = make_class_folders(tmp_path / "cells", NEEDED)
        for i in range(3):
            shutil.copy(root / "LYT/LYT_00000.png", root / f"LYT/a_twin_{i}.png")
        notes = [note for seed in range(3) for note in make(root, out=f"b{seed}", seed=seed).notes]
        assert notes
        assert all("byte-identical" in note for note in notes)

    def test_too_few_distinct_cells(self, make, make_class_folders, tmp_path):
        root = make_class_folders(tmp_path / "cells", NEEDED | {"LYT": 10})
        for i in range(10):
            shutil.copy(root / "LYT/LYT_00000.png", root / f"LYT/twin_{i}.png")
        with pytest.raises(NotEnoughCellsError, match="unreadable or duplicates"):
            make(root)
        assert not (tmp_path / "bags").exists()


class TestTooFew:
    @pytest.mark.parametrize("counts", [{"LYT": 19}, {"PMO": 1}, {"NGS": 0, "BLA": 0}])
    def test_the_message_says_how_many_are_needed_and_there(self, make, make_class_folders, tmp_path, counts):
        counts = NEEDED | counts
        root = make_class_folders(tmp_path / "cells", counts)
        for name in counts:
            (root / name).mkdir(exist_ok=True)
        with pytest.raises(NotEnoughCellsError) as caught:
            make(root)
        message = str(caught.value)
        assert "34 normal and 6 abnormal" in message
        assert f"{counts['LYT'] + counts['NGS']} normal (LYT {counts['LYT']}, NGS {counts['NGS']})" in message
        assert f"{counts['BLA'] + counts['PMO']} abnormal (BLA {counts['BLA']}, PMO {counts['PMO']})" in message
        assert "--bag-size" in message
        assert not (tmp_path / "bags").exists()

    def test_just_enough_is_enough(self, make, make_class_folders, tmp_path):
        made = make(make_class_folders(tmp_path / "cells", NEEDED))
        assert sum(row.n_instances for row in made.rows) == 40


class TestUnreadable:
    def spoil(self, root):
        """Three files that no one can read, in a class that is then used up; returns their names."""
        jpeg = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(jpeg, "JPEG")
        (root / "LYT" / "cut.jpg").write_bytes(jpeg.getvalue()[: len(jpeg.getvalue()) // 2])
        (root / "LYT" / "text.jpg").write_text("not an image")
        (root / "BLA" / "empty.png").write_bytes(b"")
        return {"LYT/cut.jpg", "LYT/text.jpg", "BLA/empty.png"}

    def test_are_left_out_and_listed_and_the_bags_are_full(self, make, make_class_folders, tmp_path):
        root = make_class_folders(tmp_path / "cells", NEEDED)
        spoilt = self.spoil(root)
        met = set()
        for seed in range(8):
            made = make(root, out=f"b{seed}", seed=seed)
            assert [row.n_instances for row in made.rows] == [10] * 4
            used = {s for bag in all_bags(made) for s in read_instance_sources(bag.path).values()}
            assert not used & spoilt
            assert {problem.where for problem in made.problems} <= spoilt
            met |= {(problem.where, problem.reason) for problem in made.problems}
        reasons = dict(met)
        assert set(reasons) == spoilt
        assert "damaged" in reasons["LYT/cut.jpg"]
        assert "not a JPEG" in reasons["LYT/text.jpg"]
        assert "empty" in reasons["BLA/empty.png"]

    def test_too_few_left(self, make, make_class_folders, tmp_path):
        root = make_class_folders(tmp_path / "cells", NEEDED | {"BLA": 3})
        self.spoil(root)
        with pytest.raises(NotEnoughCellsError, match=r"6 abnormal \(BLA 4, PMO 2\), of which \d+ are unreadable"):
            make(root)

    def test_a_name_that_is_not_utf8_is_no_hindrance(self, make, make_class_folders, tmp_path):
        root = make_class_folders(tmp_path / "cells", NEEDED)
        for file in list((root / "BLA").rglob("*.png")):
            file.rename(file.with_name(os.fsdecode(b"M\xfcller-") + file.name))
        made = make(root)
        sources = [s for bag in all_bags(made) for s in read_instance_sources(bag.path).values()]
        assert sum("M\\xfcller" in source for source in sources) == 4


class TestClasses:
    def test_unknown(self, make, cells):
        with pytest.raises(NotFoundError, match="there is no 'LYM'") as caught:
            make(cells, normal=("LYM",))
        assert "BLA, LYT, NGS, PMO" in str(caught.value)

    @pytest.mark.parametrize("changes", [{"normal": ()}, {"abnormal": ()}])
    def test_none_named_on_one_side(self, make, cells, changes):
        with pytest.raises(NotFoundError, match="--normal") as caught:
            make(cells, **changes)
        assert "BLA, LYT, NGS, PMO" in str(caught.value)

    def test_named_on_both_sides(self, make, cells):
        with pytest.raises(NotFoundError, match="BLA is both normal"):
            make(cells, normal=("LYT", "BLA"))

    def test_named_twice_on_one_side_counts_once(self, make, make_class_folders, tmp_path):
        root = make_class_folders(tmp_path / "cells", NEEDED | {"LYT": 10})
        with pytest.raises(NotEnoughCellsError, match="24 normal"):
            make(root, normal=("LYT", "LYT", "NGS"))

    def test_a_folder_without_classes(self, make, tmp_path, cell_image):
        (tmp_path / "flat").mkdir()
        (tmp_path / "flat" / "a.png").write_bytes(cell_image(0))
        with pytest.raises(NotFoundError, match="no class folders"):
            make(tmp_path / "flat")

    def test_classes_not_named_are_not_used(self, make, cells):
        made = make(cells, normal=("LYT",), abnormal=("PMO",), bag_size=6, witness_rate=0.2)
        sources = [s for bag in all_bags(made) for s in read_instance_sources(bag.path).values()]
        assert {source.split("/")[0] for source in sources} == {"LYT", "PMO"}


def test_a_class_is_the_same_in_either_unicode_form(make, tmp_path, make_class_folders):
    root = make_class_folders(tmp_path / "cells", {"e\u0301": 40, "BLA": 8})
    made = make(root, normal=("\u00e9",), abnormal=("BLA",))
    assert len(made.rows) == 4
