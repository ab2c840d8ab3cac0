from __future__ import annotations

import json
import shutil

import pytest

from cytomil.bags import open_bag, read_manifest
from cytomil.bags.bag_file import content_sha256
from cytomil.bags.config import MakeBagsConfig
from cytomil.bags.instance_labels import read_instance_sources
from cytomil.bags.make import make_bags
from cytomil.bags.manifest import RECORD_NAME
from cytomil.errors import CytomilError, NotEnoughCellsError, NotFoundError, SettingsError
from cytomil.progress import Silent


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestSynthetic:
    def test_bags_and_manifest_agree(self, bags_folder):
        rows = read_manifest(bags_folder).rows
        assert [row.split for row in rows].count("train") == 6
        assert [row.split for row in rows].count("test") == 4
        assert sum(row.label for row in rows) == 5
        for row in rows:
            bag = open_bag(bags_folder / row.path)
            assert content_sha256(bag) == bag.sha256 == row.sha256
            assert len(bag) == row.n_instances == 10
            assert row.witness_rate == (0.3 if row.label else 0.0)

    def test_are_called_synthetic_everywhere(self, bags_folder):
        for row in read_manifest(bags_folder).rows:
            assert open_bag(bags_folder / row.path).info.source == "synthetic"
            sources = read_instance_sources(bags_folder / row.path).values()
            assert all(source.startswith("synthetic/") for source in sources)
        record = json.loads((bags_folder / RECORD_NAME).read_text())
        assert "synthetic" in record["notes"][0]
        assert record["settings"]["source"] == "synthetic"

    def test_no_cell_stands_twice(self, bags_folder):
        rows = read_manifest(bags_folder).rows
        images = [image for row in rows for image in open_bag(bags_folder / row.path).images()]
        assert len(set(images)) == len(images) == 100

    def test_same_seed_same_manifest(self, make_synthetic_bags, bags_folder, tmp_path):
        same, other = make_synthetic_bags(tmp_path / "same"), make_synthetic_bags(tmp_path / "other", seed=1)
        assert (same / "bags.csv").read_bytes() == (bags_folder / "bags.csv").read_bytes()
        shas = [{row.sha256 for row in read_manifest(folder).rows} for folder in (bags_folder, other)]
        assert not shas[0] & shas[1]

    @pytest.mark.parametrize(("train", "test"), [(3, 0), (0, 3), (1, 1)])
    def test_any_number_of_bags(self, make_synthetic_bags, tmp_path, train, test):
        rows = read_manifest(make_synthetic_bags(tmp_path / "bags", train_bags=train, test_bags=test)).rows
        for split, n in (("train", train), ("test", test)):
            labels = [row.label for row in rows if row.split == split]
            assert (len(labels), sum(labels)) == (n, n // 2)

    def test_no_bags_at_all(self, make_synthetic_bags, tmp_path):
        with pytest.raises(SettingsError, match="train_bags and test_bags"):
            make_synthetic_bags(tmp_path / "bags", train_bags=0, test_bags=0)
        assert not (tmp_path / "bags").exists()


class TestRecord:
    def test_says_what_was_made_of_what(self, tmp_path, make_slide_folders):
        root = make_slide_folders(tmp_path / "slides", ["s1", "s2", "s3"])
        (root / "s1" / "cell-0.png").write_text("not an image")
        (tmp_path / "labels.csv").write_text("slide,label,split\ns1,0,train\ns2,1,train\n")
        made = make_bags(
            MakeBagsConfig(source=str(root), labels=tmp_path / "labels.csv", out=tmp_path / "bags", seed=4), Silent()
        )
        record = json.loads((made.folder / RECORD_NAME).read_text())
        assert record["settings"]["seed"] == 4
        assert "out" not in record["settings"]
        assert record["versions"]["cytomil"]
        assert record["left_out"] == [[problem.where, problem.reason] for problem in made.problems]
        assert {where for where, _ in record["left_out"]} == {"s1/cell-0.png", "s3"}


class TestReplacing:
    def test_bags_made_before_are_replaced_whole(self, make_synthetic_bags, bags_copy):
        make_synthetic_bags(bags_copy, train_bags=2, test_bags=0)
        names = {path.name for path in bags_copy.iterdir()}
        assert names == {"train-01.h5", "train-02.h5", "bags.csv", RECORD_NAME}

    def test_a_file_that_no_bags_csv_names_is_somebodys_own(self, make_synthetic_bags, bags_copy):
        (bags_copy / "mine.h5").write_text("of another program")
        with pytest.raises(CytomilError, match=r"mine\.h5 was not written by cytomil"):
            make_synthetic_bags(bags_copy, train_bags=2, test_bags=0)
        assert (bags_copy / "mine.h5").is_file()

    def test_a_failure_leaves_them_untouched(self, make_class_folders, bags_copy, tmp_path):
        """The one missing cell is noticed only when the last bag is half written."""
        root = make_class_folders(tmp_path / "cells", {"LYT": 34, "BLA": 6})
        shutil.copy(root / "LYT/LYT_00000.png", root / "LYT/LYT_00002.png")
        before = content_of(bags_copy)
        chosen = MakeBagsConfig(
            source=str(root),
            out=bags_copy,
            normal=("LYT",),
            abnormal=("BLA",),
            bag_size=10,
            witness_rate=0.3,
            train_bags=2,
            test_bags=2,
        )
        with pytest.raises(NotEnoughCellsError):
            make_bags(chosen, Silent())
        assert content_of(bags_copy) == before
        assert {path.name for path in tmp_path.iterdir()} == {"bags", "cells"}

    def test_an_interruption_leaves_them_untouched(self, bags_copy, tmp_path):
        class Impatient(Silent):
            def track(self, items, description, total=None, unit=""):
                for n, item in enumerate(items):
                    if n == 3:
                        raise KeyboardInterrupt
                    yield item

        before = content_of(bags_copy)
        with pytest.raises(KeyboardInterrupt):
            make_bags(MakeBagsConfig(out=bags_copy, bag_size=4, cell_size=16, seed=9), Impatient())
        assert content_of(bags_copy) == before
        assert list(tmp_path.iterdir()) == [bags_copy]

    def test_a_folder_of_other_things_is_left_alone(self, make_synthetic_bags, tmp_path):
        (tmp_path / "work").mkdir()
        (tmp_path / "work" / "thesis.txt").write_text("years")
        with pytest.raises(CytomilError, match=r"work .*--out"):
            make_synthetic_bags(tmp_path / "work")
        assert content_of(tmp_path / "work") == {"thesis.txt": b"years"}

    def test_a_file_is_left_alone(self, make_synthetic_bags, tmp_path):
        (tmp_path / "bags").write_text("a file")
        with pytest.raises(CytomilError, match="is a file"):
            make_synthetic_bags(tmp_path / "bags")
        assert (tmp_path / "bags").read_text() == "a file"

    def test_an_empty_folder_is_filled(self, make_synthetic_bags, tmp_path):
        (tmp_path / "bags").mkdir()
        make_synthetic_bags(tmp_path / "bags", train_bags=2, test_bags=0)
        assert len(read_manifest(tmp_path / "bags").rows) == 2

    def test_a_link_to_another_disk_stays_a_link(self, make_synthetic_bags, bags_copy, tmp_path):
        link = tmp_path / "link"
        link.symlink_to(bags_copy)
        make_synthetic_bags(link, train_bags=2, test_bags=0)
        assert link.is_symlink()
        assert len(read_manifest(bags_copy).rows) == 2


class TestSource:
    @pytest.mark.parametrize("name", ["none", "file.txt"])
    def test_that_is_no_folder(self, tmp_path, name):
        (tmp_path / "file.txt").write_text("x")
        with pytest.raises(NotFoundError, match=name):
            make_bags(MakeBagsConfig(source=str(tmp_path / name), out=tmp_path / "bags"), Silent())
        assert not (tmp_path / "bags").exists()

    def test_that_is_empty(self, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(NotFoundError, match="no class folders"):
            make_bags(MakeBagsConfig(source=str(tmp_path / "empty"), out=tmp_path / "bags"), Silent())
