from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytomil.morphology.masks import CellMasks
from cytomil.morphology.measure import regions, stains

SIDE = 64
ROW, COLUMN = np.mgrid[:SIDE, :SIDE]


def disc(radius):
    return np.hypot(ROW - 31.5, COLUMN - 31.5) < radius


def of_cell(nucleus, cell):
    return regions(CellMasks(nucleus[None], nucleus[None], cell[None]))[0]


def test_regions_are_nucleus_cytoplasm_rim_and_core():
    nucleus, cell = disc(10), disc(20)
    found = of_cell(nucleus, cell)
    assert np.array_equal(found[0], nucleus)
    assert np.array_equal(found[1], cell & ~nucleus)
    assert not (found[2] & ~found[1]).any()
    assert not found[2][~disc(13.1)].any()
    assert not found[3][~disc(9.8)].any()
    assert (found[3] & ~nucleus).sum() == 0


def test_the_whole_cell_stands_in_for_a_region_that_is_hardly_there():
    found = of_cell(disc(10), disc(10))
    assert np.array_equal(found[1], disc(10))
    assert np.array_equal(found[2], disc(10))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(6, 900))
def test_of_each_region_the_numbers_are_numpys(seed, pixels):
    drawn = np.random.default_rng(seed)
    layers = [drawn.random((1, SIDE, SIDE, 3), np.float32) for _ in range(4)]
    region = np.zeros(SIDE * SIDE, np.bool_)
    region[drawn.permutation(SIDE * SIDE)[:pixels]] = True
    region = region.reshape(SIDE, SIDE)
    colours = layers[0][0][region].astype(np.float64)
    bands = np.stack([(fine - coarse)[0][region] for fine, coarse in pairwise(layers)], axis=2)
    extremes = np.abs(np.percentile(bands[:, 1, 1], [2, 98]))
    rough = np.concatenate([colours.std(axis=0), bands.std(axis=0).ravel(), extremes])
    tails = np.percentile(colours, [5, 95], axis=0)
    expected = np.concatenate([colours.mean(axis=0), tails.ravel(), np.log(rough + 0.01)])
    found = stains(region[None, None], layers)
    np.testing.assert_allclose(found, expected[None], rtol=1e-5, atol=1e-6)


def test_an_even_region_has_no_grain():
    layers = [np.full((1, SIDE, SIDE, 3), value, np.float32) for value in (0.7, 0.7, 0.7, 0.7)]
    found = stains(disc(10)[None, None], layers)[0]
    assert found[:9] == pytest.approx(np.full(9, 0.7))
    assert found[9:] == pytest.approx(np.full(14, np.log(0.01)), abs=1e-3)
