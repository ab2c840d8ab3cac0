import numpy as np
import pytest

from bench.cell_features import Cells, folder_bags
from bench.recipe import (
    CEILING,
    TEST_BAGS,
    TRAIN_BAGS,
    Task,
    draw,
    fit,
    judge,
    judge_people,
    paired,
    people,
)
from cytomil.bags.images import encode_image
from cytomil.bags.manifest import read_manifest


def cells_of(counts, dim=8, apart=6.0):
    """Normal cells about nought, abnormal ones farther out in the first dimension; folder name → how many."""
    rng = np.random.default_rng(0)
    values, names = [], []
    for name, n in counts.items():
        part = rng.normal(size=(n, dim)).astype(np.float32)
        part[:, 0] += apart * ("odd" in name)
        values.append(part)
        names += [name] * n
    return Cells(np.concatenate(values), np.array(names), (dim,))


def test_no_cell_is_drawn_twice_and_every_second_bag_is_positive():
    normal, abnormal = np.arange(500), np.arange(500, 560)
    bags = draw(normal, abnormal, 20, 0.1, seed=3)
    used = np.concatenate([bag.cells for bag in bags])
    assert len(bags) == TRAIN_BAGS + TEST_BAGS
    assert len(used) == len(set(used.tolist()))
    for number, bag in enumerate(bags):
        assert bag.label == number % 2
        assert bag.abnormal.sum() == 2 * bag.label
        assert (bag.abnormal == np.isin(bag.cells, abnormal)).all()


def test_the_same_seed_draws_the_same_and_another_one_does_not():
    first, same, other = (draw(np.arange(500), np.arange(500, 560), 20, 0.1, seed) for seed in (0, 0, 1))
    assert all((a.cells == b.cells).all() for a, b in zip(first, same, strict=True))
    assert any((a.cells != b.cells).any() for a, b in zip(first, other, strict=True))


def test_too_few_cells_are_said():
    with pytest.raises(ValueError, match="too few cells"):
        draw(np.arange(100), np.arange(100, 160), 20, 0.1, 0)


@pytest.mark.parametrize("aggregator", ["gaussian", CEILING])
def test_what_is_far_out_is_found(aggregator):
    cells = cells_of({"normal": 600, "odd": 60})
    bags = draw(np.arange(600), np.arange(600, 660), 20, 0.1, 0)
    found = judge(cells, fit(cells, bags[:TRAIN_BAGS], aggregator, 0), bags[TRAIN_BAGS:], np.arange(650, 660), 0)
    assert found["cells"] > 0.98
    assert found["bags"] > 0.95


def test_people_keep_their_normal_cells_and_half_of_them_no_other():
    counts = {}
    for i in range(10):
        counts |= {f"cells/normal/P{i}": 18, f"cells/odd/P{i}": 5}
    cells = cells_of(counts | {"cells/normal/H1": 18})
    task = Task(None, ("normal",), ("odd",), None, (0.1,))
    bags = people(cells, task, 0.1, seed=0)
    assert len({bag.person for bag in bags}) == len(bags) == 10
    assert [int(bag.abnormal.sum()) for bag in bags] == [0, 2] * 5
    assert all((~bag.abnormal).sum() == 18 for bag in bags)
    found = judge_people(cells, bags, "gaussian", 0)
    assert found["cells"] > 0.95
    assert found["bags"] > 0.9
    assert 0 <= found["control"] <= 1


def test_a_folder_of_images_is_a_bag(tmp_path):
    image = encode_image(np.random.default_rng(0).integers(0, 255, (12, 12, 3), dtype=np.uint8))
    for i, name in enumerate(("LYT", "cells/BLA/P1", "left/out")):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / f"{i}.jpg").write_bytes(image)
    rows = read_manifest(folder_bags(tmp_path / "data", tmp_path / "bags", ("left",))).rows
    assert [row.bag_id for row in rows] == ["LYT", "cells--BLA--P1"]


def test_differences_are_of_the_same_split():
    runs = [
        {"recipe": recipe, "aggregator": "a", "split": split, "bags": value}
        for recipe, by_split in {"one": {1: 0.5, 2: 0.7}, "two": {2: 0.8, 1: 0.5}}.items()
        for split, value in by_split.items()
    ]
    assert paired(runs, ("two", "a"), "bags") == pytest.approx([0, 10])
