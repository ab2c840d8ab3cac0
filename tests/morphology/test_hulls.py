import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from scipy import ndimage as ndi
from skimage.morphology import convex_hull_image

from cytomil.morphology.masks import hulls

ROW, COLUMN = np.mgrid[:40, :40]
some_masks = stn.arrays(np.bool_, (3, 18, 18), elements=st.booleans() | st.just(False))


@settings(max_examples=80, deadline=None)
@given(some_masks, st.integers(0, 17), st.integers(0, 17))
def test_each_hull_is_that_of_its_mask(masks, row, column):
    masks[:, row, column] = True
    expected = np.stack([convex_hull_image(mask) | mask for mask in masks])
    assert np.array_equal(hulls(masks).masks, expected)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(3, 36), st.integers(3, 36), st.integers(2, 6)), min_size=1, max_size=4),
    st.floats(0.5, 20),
)
def test_near_is_all_that_lies_less_than_the_reach_away(discs, reach):
    mask = np.any([np.hypot(ROW - row, COLUMN - column) <= radius for row, column, radius in discs], axis=0)
    hull = hulls(mask[None])
    expected = ndi.distance_transform_edt(~hull.masks[0]) < reach
    assert np.array_equal(hull.dilated(reach).masks[0], expected)


@pytest.mark.parametrize("radius", [6, 12, 18])
def test_a_disc_is_nearly_its_own_hull_and_a_ring_has_the_discs(radius):
    disc = np.hypot(ROW - 19.5, COLUMN - 19.5) < radius
    ring = disc & (np.hypot(ROW - 19.5, COLUMN - 19.5) > radius - 2)
    of_disc, of_ring = hulls(np.stack([disc, ring])).masks
    assert np.array_equal(of_disc, of_ring)
    assert (disc <= of_disc).all()
    assert disc.sum() > 0.93 * of_disc.sum()


def test_two_pixels_have_the_line_between_them():
    mask = np.zeros((1, 9, 9), np.bool_)
    mask[0, 1, 1] = mask[0, 7, 7] = True
    assert np.array_equal(hulls(mask).masks[0], np.eye(9, dtype=np.bool_) & (np.arange(9) > 0) & (np.arange(9) < 8))
