from __future__ import annotations

import shutil

import numpy as np
import pytest

from cytomil.errors import FeatureFileError, NotFoundError
from cytomil.features.cache import EmbeddedBlock, FeatureKey, write_features
from cytomil.features.index import INDEX_NAME, FeatureIndex, IndexRow, read_index, write_index


@pytest.fixture
def make_index(tmp_path):
    """A folder of caches: ``make_index(a="train", b="test")``; ``keys`` changes the key of some, ``sizes`` the size."""

    def make(keys=None, sizes=None, **splits):
        rows = []
        for name, split in splits.items():
            chosen = {"encoder_sha256": "e", "layer": "z"} | (keys or {}).get(name, {})
            key = FeatureKey(name, chosen["encoder_sha256"], chosen["layer"], "t", "eager", "float32", "1")
            n = (sizes or {}).get(name, 3)
            block = EmbeddedBlock([f"c{i}" for i in range(n)], np.zeros((n, 2), int), np.ones((n, 4)))
            write_features(tmp_path / f"{name}.h5", name, key, 4, [block])
            rows.append(IndexRow(name, f"{name}.h5", f"of {name}", split, 1, n, name))
        write_index(FeatureIndex(tmp_path, tuple(rows)))
        return read_index(tmp_path)

    return make


class TestRoundTrip:
    def test_rows(self, tmp_path):
        rows = (
            IndexRow("a, b", "a.h5", 'the "first"', "train", 0, 3, "s"),
            IndexRow("ü", "u.h5", "", "test", 1, 0, "s"),
        )
        write_index(FeatureIndex(tmp_path, rows))
        assert read_index(tmp_path) == FeatureIndex(tmp_path, rows)

    def test_opening_a_split(self, make_index):
        index = make_index(a="train", b="test", c="train")
        assert [row.bag_id for row, _ in index.open("train")] == ["a", "c"]
        assert [features.bag_id for _, features in index.open("test")] == ["b"]
        assert len(index.open("all")) == 3

    def test_a_folder_that_was_moved(self, make_index, tmp_path):
        make_index(a="train")
        shutil.move(tmp_path, tmp_path.with_name("moved"))
        assert len(read_index(tmp_path.with_name("moved")).open("train")) == 1


class TestRefused:
    def test_no_index(self, tmp_path):
        with pytest.raises(NotFoundError, match=r"features\.csv does not exist.*cytomil embed"):
            read_index(tmp_path)

    @pytest.mark.parametrize(
        "content",
        [
            b"bag_id,path\na,a.h5\n",
            b"bag_id,path,patient_id,split,label,n_instances\na,a.h5,p,train,one,3\n",
            b"bag_id,path,patient_id,split,label,n_instances\na,a.h5,p,train,1\n",
            b"bag_id,path,patient_id,split,label,n_instances\na,a.h5\n",
            b"bag_id,path,patient_id,split,label,n_instances\nM\xfcller,a.h5,p,train,1,3\n",
            b"\x89HDF\r\n\x1a\n\x00\xff\n\x00",
        ],
    )
    def test_damaged(self, tmp_path, content):
        (tmp_path / INDEX_NAME).write_bytes(content)
        with pytest.raises(FeatureFileError, match=r"features\.csv is damaged.*cytomil embed"):
            read_index(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"bag_id,path,patient_id,split,label,n_instances\n"])
    def test_empty(self, tmp_path, content):
        (tmp_path / INDEX_NAME).write_bytes(content)
        with pytest.raises(FeatureFileError, match="no features of split 'train'"):
            read_index(tmp_path).open("train")

    def test_a_split_without_caches(self, make_index):
        with pytest.raises(FeatureFileError, match="no features of split 'test'"):
            make_index(a="train").open("test")

    @pytest.mark.parametrize("other", [{"encoder_sha256": "f"}, {"layer": "h"}])
    def test_caches_of_different_encoders_or_layers(self, make_index, other):
        with pytest.raises(FeatureFileError, match=r"number of orientations differ between b\.h5 and a\.h5"):
            make_index(keys={"b": other}, a="train", b="train").open("train")

    def test_a_cache_without_cells(self, make_index):
        with pytest.raises(FeatureFileError, match=r"b\.h5 holds no cells"):
            make_index(sizes={"b": 0}, a="train", b="train").open("train")

    @pytest.mark.parametrize("damage", ["missing", "truncated"])
    def test_a_damaged_cache(self, make_index, tmp_path, damage):
        index = make_index(a="train", b="train")
        content = (tmp_path / "b.h5").read_bytes()
        (tmp_path / "b.h5").unlink()
        if damage == "truncated":
            (tmp_path / "b.h5").write_bytes(content[:-50])
        with pytest.raises(FeatureFileError, match=r"b\.h5"):
            index.open("train")


@pytest.mark.parametrize(
    ("old", "new"), [(",1,3,", ",0,3,"), ("of a", "of z"), (",train,", ",test,"), ("a.h5", "b.h5")]
)
def test_an_edited_row_is_refused_with_the_way_to_change_a_label(make_index, tmp_path, old, new):
    make_index(a="train", b="test")
    file = tmp_path / INDEX_NAME
    head, first, rest = file.read_text().split("\n", 2)
    file.write_text("\n".join([head, first.replace(old, new, 1), rest]))
    with pytest.raises(FeatureFileError, match=r"features\.csv, line 2: edited or damaged.*labels file"):
        read_index(tmp_path)


def test_a_row_that_stands_twice_is_refused(make_index, tmp_path):
    index = make_index(a="train", b="test")
    write_index(FeatureIndex(tmp_path, (*index.rows, index.rows[0])))
    with pytest.raises(FeatureFileError, match="lists a bag twice"):
        read_index(tmp_path)


def test_a_cache_of_another_bag_than_its_row_is_refused(make_index, tmp_path):
    index = make_index(a="train", b="train")
    (tmp_path / "a.h5").write_bytes((tmp_path / "b.h5").read_bytes())
    with pytest.raises(FeatureFileError, match=r"a\.h5 does not match its row in features\.csv"):
        index.open("train")


def test_a_row_that_was_removed_is_noticed(make_index, tmp_path):
    make_index(a="train", b="test", c="test")
    lines = (tmp_path / INDEX_NAME).read_text().splitlines()
    (tmp_path / INDEX_NAME).write_text("\n".join([*lines[:-1], ""]))
    with pytest.raises(FeatureFileError, match="edited or damaged"):
        read_index(tmp_path)
