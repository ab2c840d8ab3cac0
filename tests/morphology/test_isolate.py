import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage as ndi

from cytomil.morphology.masks import isolate

SIDE = 64
ROW, COLUMN = np.mgrid[:SIDE, :SIDE]
NUCLEUS, CYTOPLASM = (1.0, 1.2, 0.5), (0.1, 0.3, 0.2)


def disc(row, column, radius):
    return np.hypot(ROW - row, COLUMN - column) < radius


def drawn(*cells, background=(0.0, 0.0, 0.0), red_cells=()):
    """Optical density of cells (row, column) of one size, and of red cells, over a background."""
    density = np.zeros((SIDE, SIDE, 3), np.float32)
    for row, column in red_cells:
        density[disc(row, column, 7)] = (0.05, 0.35, 0.3)
    for row, column in cells:
        density[disc(row, column, 13)] = CYTOPLASM
        density[disc(row, column, 7)] = NUCLEUS
    return density + np.array(background, np.float32)


def alone(density):
    return isolate(density[None], ndi.gaussian_filter(density, (0.7, 0.7, 0))[None])[0]


def test_the_cell_stays_as_it_is_and_a_touching_neighbour_goes():
    density = drawn((32, 26), (32, 52))
    found = alone(density)
    own = disc(32, 26, 12)
    np.testing.assert_allclose(found[own], density[own], atol=1e-6)
    assert not found[disc(32, 52, 12)].any()


def test_what_lies_far_from_the_nucleus_is_left_out():
    found = alone(drawn((32, 32), red_cells=[(6, 6), (58, 57)]))
    assert not found[disc(6, 6, 7) | disc(58, 57, 7)].any()
    assert found[disc(32, 32, 12)].min(axis=-1).all()


@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.floats(0, 0.5)] * 3))
def test_the_backgrounds_tint_changes_nothing(background):
    np.testing.assert_allclose(alone(drawn((32, 32), background=background)), alone(drawn((32, 32))), atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_empty_picture_is_empty(value):
    assert not alone(np.full((SIDE, SIDE, 3), value, np.float32)).any()


def test_pictures_are_isolated_one_by_one():
    pictures = np.stack([drawn((32, 26), (32, 52)), drawn((32, 32), red_cells=[(6, 6)]), drawn((30, 30))])
    smooth = ndi.gaussian_filter(pictures, (0, 0.7, 0.7, 0))
    assert np.array_equal(isolate(pictures, smooth), np.stack([alone(picture) for picture in pictures]))


def test_a_pixel_as_near_to_another_nucleus_is_not_the_cells():
    found = alone(drawn((32, 20), (32, 54)))
    halfway = 37
    assert not found[:, halfway:].any()
    assert found[32, 32].all()
