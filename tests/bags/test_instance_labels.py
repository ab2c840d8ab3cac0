from __future__ import annotations

import pytest

from cytomil.bags import BagInfo, Instance, write_bag
from cytomil.bags.instance_labels import read_instance_labels, read_instance_sources
from cytomil.errors import BagFileError
from tests.altered import altering

READERS = [read_instance_labels, read_instance_sources]


@pytest.fixture
def bag_file(tmp_path):
    cells = [Instance("a", b"1", label=1, source="BLA/1.png"), Instance("b", b"2", label=0, source="LYT/é.png")]
    write_bag(tmp_path / "bag.h5", BagInfo("bag", 1), [*cells, Instance("c", b"3")])
    return tmp_path / "bag.h5"


def test_labels_by_instance(bag_file):
    labels = read_instance_labels(bag_file)
    assert labels == {"a": 1, "b": 0, "c": -1}
    assert all(type(label) is int for label in labels.values())


def test_sources_by_instance(bag_file):
    assert read_instance_sources(bag_file) == {"a": "BLA/1.png", "b": "LYT/é.png", "c": ""}


@pytest.mark.parametrize("read", READERS)
def test_a_truncated_bag_is_refused(bag_file, read):
    bag_file.write_bytes(bag_file.read_bytes()[:-100])
    with pytest.raises(BagFileError):
        read(bag_file)


@pytest.mark.parametrize("read", READERS)
def test_a_missing_bag_is_refused(tmp_path, read):
    with pytest.raises(BagFileError):
        read(tmp_path / "none.h5")


@pytest.mark.parametrize("read", READERS)
def test_labels_of_another_length_are_refused(bag_file, read):
    with altering(bag_file) as file:
        file["instance_label"].resize(2, axis=0)
    with pytest.raises(BagFileError, match="is inconsistent"):
        read(bag_file)
