from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from cytomil.morphology.measure import N_DESCRIPTORS, SIDE, describe

ROW, COLUMN = np.mgrid[:SIDE, :SIDE]
PALE, PINK, VIOLET = (250, 235, 215), (230, 150, 170), (90, 40, 140)
# Where `describe` puts what the tests ask for.
AREA, CELL_AREA, SHARE, LOBES, NUCLEUS_GREEN, CYTOPLASM_GREEN = 0, 2, 3, 7, 17 + 1, 17 + 23 + 1


def disc(row, column, radius):
    return np.hypot(ROW - row, COLUMN - column) < radius


def picture(nucleus, cell, violet=VIOLET, pink=PINK, seed=0):
    pixels = np.full((SIDE, SIDE, 3), PALE, np.float64)
    pixels[cell], pixels[nucleus] = pink, violet
    noise = np.random.default_rng(seed).normal(0, 3, pixels.shape)
    return (pixels + noise).clip(0, 255).astype(np.uint8)


ROUND = picture(disc(31, 32, 10), disc(32, 32, 18))


def one(pixels):
    return describe(pixels[None])[0]


def test_areas_are_what_was_drawn():
    found = one(ROUND)
    assert found[AREA] == pytest.approx(np.log(np.pi * 10**2), abs=0.1)
    assert found[CELL_AREA] == pytest.approx(np.log(np.pi * 18**2), abs=0.1)
    assert found[SHARE] == pytest.approx(10**2 / 18**2, abs=0.05)


def test_colours_are_the_optical_densities_over_the_background_that_were_drawn():
    found = one(ROUND)
    assert found[NUCLEUS_GREEN] == pytest.approx(np.log(236 / 41), abs=0.07)
    assert found[CYTOPLASM_GREEN] == pytest.approx(np.log(236 / 151), abs=0.07)


def test_a_neighbour_that_touches_changes_little():
    pair = picture(disc(31, 22, 7) | disc(31, 53, 7), disc(31, 22, 15) | disc(31, 53, 15))
    single = picture(disc(31, 22, 7), disc(31, 22, 15))
    np.testing.assert_allclose(one(pair)[[AREA, CELL_AREA, SHARE]], one(single)[[AREA, CELL_AREA, SHARE]], atol=0.1)


def test_what_is_drawn_otherwise_is_described_otherwise():
    large, dark = picture(disc(31, 32, 14), disc(32, 32, 18)), picture(disc(31, 32, 10), disc(32, 32, 18), (60, 20, 90))
    lobes = picture(disc(26, 27, 6) | disc(39, 36, 6), disc(32, 32, 18))
    assert one(large)[AREA] - one(ROUND)[AREA] == pytest.approx(2 * np.log(14 / 10), abs=0.1)
    assert one(dark)[NUCLEUS_GREEN] > one(ROUND)[NUCLEUS_GREEN] + 0.5
    assert (one(ROUND)[LOBES], one(lobes)[LOBES]) == pytest.approx((0, np.log(2)))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_turning_and_mirroring_change_nothing_but_rounding(turns, mirrored):
    cell = picture(disc(26, 27, 6) | disc(39, 36, 6), disc(31.5, 31.5, 18))
    turned = np.rot90(cell[:, ::-1] if mirrored else cell, turns)
    np.testing.assert_allclose(one(np.ascontiguousarray(turned)), one(cell), rtol=0.02, atol=0.02)


@settings(max_examples=20, deadline=None)
@given(stn.arrays(np.uint8, (2, SIDE, SIDE, 3), fill=st.integers(0, 255)))
def test_whatever_the_picture_its_description_is_finite(pixels):
    found = describe(pixels)
    assert found.shape == (2, N_DESCRIPTORS)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [1, 2, 8])
def test_pictures_of_few_pixels_and_even_ones_are_described_without_a_warning(side):
    few = np.random.default_rng(side).integers(0, 256, (20, side, side, 3)).astype(np.uint8)
    found = describe(few.repeat(SIDE // side, axis=1).repeat(SIDE // side, axis=2))
    assert np.isfinite(found).all()


@pytest.mark.filterwarnings("error")
def test_dots_and_frames_and_slopes_are_described_without_a_warning():
    frame = np.ones((SIDE, SIDE), np.bool_)
    frame[2:-2, 2:-2] = False
    drawn = [frame, ~frame, (ROW == 32) & (COLUMN == 32), COLUMN == 32, ROW == COLUMN, np.zeros_like(frame)]
    pictures = [np.where(mask, 0, 255) for mask in drawn] + [ROW * 4, COLUMN * 4, np.where(frame, 254, 255)]
    found = describe(np.stack(pictures).astype(np.uint8)[..., None].repeat(3, axis=3))
    assert np.isfinite(found).all()


def test_a_background_of_another_tint_changes_no_colour():
    tinted = (ROUND * np.array([0.8, 0.9, 1.0])).astype(np.uint8)
    np.testing.assert_allclose(one(tinted)[17:23], one(ROUND)[17:23], atol=0.1)


def test_cells_are_described_one_by_one():
    cells = np.stack([ROUND, picture(disc(30, 30, 7), disc(32, 32, 15), seed=1), np.zeros_like(ROUND)])
    assert np.array_equal(describe(cells), np.stack([one(cell) for cell in cells]))
    many = np.concatenate([cells] * 30)
    assert np.array_equal(describe(many), np.concatenate([describe(cells)] * 30))
    assert describe(cells[:0]).shape == (0, N_DESCRIPTORS)


def test_threads_describe_as_one_does():
    cells = np.stack([picture(disc(30, 30, 5 + i % 7), disc(32, 32, 16), seed=i) for i in range(40)])
    with ThreadPoolExecutor(4) as threads:
        assert all(np.array_equal(found, describe(cells)) for found in threads.map(describe, [cells] * 8))
