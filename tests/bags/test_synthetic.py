from __future__ import annotations

from itertools import islice

import pytest

from cytomil.bags.images import open_image
from cytomil.bags.synthetic_cells import ABNORMAL_KINDS, NORMAL_KINDS, synthetic_abnormal, synthetic_normal

SIDES = [(synthetic_normal, 0, NORMAL_KINDS), (synthetic_abnormal, 1, ABNORMAL_KINDS)]


def first(source, n=30, seed=0, size=24, difficulty=0.5):
    return list(islice(source(seed, size, difficulty), n))


@pytest.mark.parametrize(("source", "label", "kinds"), SIDES)
def test_cells_are_labelled_and_called_synthetic(source, label, kinds):
    cells = first(source, 60)
    assert {cell.label for cell in cells} == {label}
    assert {cell.source for cell in cells} == {f"synthetic/{kind}" for kind in kinds}


@pytest.mark.parametrize(("source", "label", "kinds"), SIDES)
def test_ids_say_nothing_of_the_kind_and_are_unique(source, label, kinds):
    cells = first(source)
    assert len({cell.instance_id for cell in cells}) == len({cell.image for cell in cells}) == len(cells)
    assert all(set(cell.instance_id) <= set("0123456789abcdef") for cell in cells)


@pytest.mark.parametrize(("source", "label", "kinds"), SIDES)
@pytest.mark.parametrize("size", [16, 24, 72])
def test_images_have_the_asked_size(source, label, kinds, size):
    for cell in first(source, 3, size=size):
        assert open_image(cell.image, "cell").size == (size, size)


@pytest.mark.parametrize(("source", "label", "kinds"), SIDES)
def test_the_seed_decides(source, label, kinds):
    assert first(source, 5, seed=1) == first(source, 5, seed=1)
    assert first(source, 5, seed=1) != first(source, 5, seed=2)


def test_normal_and_abnormal_cells_are_drawn_apart():
    normal, abnormal = first(synthetic_normal), first(synthetic_abnormal)
    assert not {cell.instance_id for cell in normal} & {cell.instance_id for cell in abnormal}
