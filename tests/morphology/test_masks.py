import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from cytomil.morphology import masks as stacked
from cytomil.morphology.masks import CellMasks

SIDE = 64
ROW, COLUMN = np.mgrid[:SIDE, :SIDE]


def disc(row, column, radius):
    return np.hypot(ROW - row, COLUMN - column) < radius


def densities(nucleus, cytoplasm, extra=None):
    """Red sees the nucleus, green the cytoplasm too; both with a faint grain."""
    grain = 0.02 * np.random.default_rng(0).standard_normal((2, SIDE, SIDE))
    red = 0.1 + 0.9 * nucleus + (0 if extra is None else 0.9 * extra)
    green = 0.1 + 0.5 * (cytoplasm | nucleus) + 0.5 * nucleus
    return red + grain[0], green + grain[1]


def find_masks(red, green):
    found = stacked.find_masks(*(np.ascontiguousarray(one, np.float32)[None] for one in (red, green)))
    return CellMasks(found.nucleus[0], found.hull[0], found.cell[0])


def overlap(found, true):
    return (found & true).sum() / (found | true).sum()


def test_nucleus_and_cell_are_found_where_they_are():
    nucleus, cell = disc(30, 34, 9), disc(31, 31, 17)
    masks = find_masks(*densities(nucleus, cell))
    assert overlap(masks.nucleus, nucleus) > 0.95
    assert overlap(masks.cell, cell) > 0.9
    assert not (masks.nucleus & ~masks.cell).any()


def test_all_lobes_of_a_nucleus_count_and_a_neighbours_does_not():
    lobes = disc(24, 26, 6) | disc(40, 36, 6)
    neighbour = disc(6, 58, 6)
    masks = find_masks(*densities(lobes, disc(32, 31, 18), neighbour))
    assert overlap(masks.nucleus, lobes) > 0.9
    assert overlap(masks.hull, masks.nucleus) < 0.9
    assert not masks.nucleus[neighbour].any()


def test_other_nuclei_are_told_apart_and_grains_of_dirt_are_none():
    neighbour, grain = disc(32, 61, 8), disc(8, 8, 2)
    red = densities(disc(32, 28, 9), disc(32, 28, 15), neighbour | grain)[0]
    nuclei = stacked.find_nuclei(red[None].astype(np.float32))
    assert overlap(nuclei.others[0], neighbour) > 0.8
    assert not nuclei.others[0][grain].any()
    assert not (nuclei.own & nuclei.others).any()


def test_a_cell_that_touches_another_does_not_swallow_it():
    cell, neighbour = disc(32, 32, 13), disc(32, 60, 14)
    masks = find_masks(*densities(disc(32, 32, 8), cell | neighbour))
    assert masks.cell[cell].mean() > 0.9
    assert masks.cell[neighbour & (COLUMN > 54)].mean() < 0.05


def test_without_a_nucleus_a_disc_about_the_centre_stands_in():
    masks = find_masks(np.full((SIDE, SIDE), 0.1), np.full((SIDE, SIDE), 0.1))
    assert overlap(masks.nucleus, disc(31.5, 31.5, 0.4 * SIDE / 2)) > 0.9


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turning_the_cell_turns_its_masks(turns):
    red, green = densities(disc(28, 36, 8), disc(31, 31, 17))
    masks, turned = find_masks(red, green), find_masks(np.rot90(red, turns), np.rot90(green, turns))
    for name in ("nucleus", "hull", "cell"):
        assert overlap(np.rot90(getattr(masks, name), turns), getattr(turned, name)) > 0.99


@settings(max_examples=30, deadline=None)
@given(stn.arrays(np.float32, (2, 24, 24), elements=st.floats(0, 5.5, width=32)))
def test_whatever_the_picture_no_mask_is_empty(picture):
    masks = find_masks(*picture)
    assert masks.nucleus.any()
    assert (masks.nucleus <= masks.hull).all()
    assert (masks.nucleus <= masks.cell).all()


def test_a_picture_whose_values_all_but_agree_has_masks():
    """A cell on an even black surround, as segmented data sets have it."""
    picture = np.full((SIDE, SIDE), 5.5, np.float32)
    picture[::2] = np.nextafter(picture[::2], np.float32(6))
    assert find_masks(picture, picture).nucleus.any()


def test_pictures_have_the_masks_that_they_have_alone():
    drawn = [densities(disc(28 + i, 36, 6 + i), disc(31, 31, 17), disc(6, 58, 6) if i else None) for i in range(3)]
    red, green = np.array(drawn, np.float32).swapaxes(0, 1)
    together = stacked.find_masks(red, green)
    for i, (one_red, one_green) in enumerate(zip(red, green, strict=True)):
        alone = find_masks(one_red, one_green)
        for name in ("nucleus", "hull", "cell"):
            assert np.array_equal(getattr(together, name)[i], getattr(alone, name))
