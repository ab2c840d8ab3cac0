import pytest

from bench.bag_size import further_cell, write_large_bag
from cytomil.bags.bag_file import open_bag
from cytomil.bags.manifest import read_manifest


def test_a_large_bag_repeats_the_cells_under_names_of_their_own(bags_folder, tmp_path):
    write_large_bag(bags_folder, tmp_path / "large", 250)
    (row,) = read_manifest(tmp_path / "large").rows
    bag = open_bag(tmp_path / "large" / row.path)
    assert len(bag) == row.n_instances == 250 and len(set(bag.instance_ids)) == 250
    assert row.sha256 == bag.sha256
    images = bag.images()
    assert images[:50] == images[100:150] and len(set(images[:100])) > 90


def test_start_up_cancels_out_of_a_further_cell():
    rows = [
        {"cells": n, "verb": verb, "seconds": 5 + n * cost}
        for n in (100, 1000)
        for verb, cost in (("embed", 0.01), ("rank", 0.02))
    ]
    told = further_cell(rows)
    assert told["embed"] == pytest.approx([0.01]) and told["rank"] == pytest.approx([0.02])
