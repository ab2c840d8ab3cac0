import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from scipy import ndimage as ndi

from cytomil.morphology.masks import MAX_STEPS, depths, dilated, eroded, filled, opened, parts

some_masks = stn.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=14).flatmap(
    lambda shape: stn.arrays(np.bool_, (shape[0], shape[1], shape[1]))
)


def one_by_one(change, masks):
    return np.stack([change(mask) for mask in masks])


@settings(max_examples=60, deadline=None)
@given(some_masks, st.integers(1, MAX_STEPS))
def test_each_mask_is_changed_as_if_it_were_alone_in_the_world(masks, steps):
    assert np.array_equal(eroded(masks, steps), one_by_one(lambda m: ndi.binary_erosion(m, iterations=steps), masks))
    assert np.array_equal(dilated(masks, steps), one_by_one(lambda m: ndi.binary_dilation(m, iterations=steps), masks))
    assert np.array_equal(opened(masks, steps), one_by_one(lambda m: ndi.binary_opening(m, iterations=steps), masks))
    assert np.array_equal(filled(masks), one_by_one(ndi.binary_fill_holes, masks))


@settings(max_examples=60, deadline=None)
@given(some_masks)
def test_parts_touch_by_their_edges_within_one_picture(masks):
    found = parts(masks)
    labels = [ndi.label(mask) for mask in masks]
    assert np.bincount(found.picture, minlength=len(masks)).tolist() == [n for _, n in labels]
    assert np.array_equal(found.keep(np.ones(len(found.area), np.bool_)), masks)
    for i, (picture, area, middle) in enumerate(zip(found.picture, found.area, found.centroids(), strict=True)):
        own = found.keep(np.arange(len(found.area)) == i)
        assert own[picture].sum() == own.sum() == area
        assert len(np.unique(labels[picture][0][own[picture]])) == 1
        assert middle == pytest.approx(np.argwhere(own[picture]).mean(axis=0))


def test_parts_are_kept_by_name_and_found_by_their_pixels():
    masks = np.zeros((2, 6, 6), np.bool_)
    masks[0, :2, :2] = masks[0, 4:, 4:] = masks[1, 2:4, 2:4] = True
    found = parts(masks)
    point = np.zeros_like(masks)
    point[0, 5, 5] = point[1, 2, 2] = True
    named = found.touches(point)
    assert named.sum() == 2
    assert np.array_equal(found.keep(named)[0], masks[0] & (np.arange(6) > 3))
    assert np.array_equal(found.keep(named)[1], masks[1])
    assert not found.keep(~np.ones(3, np.bool_)).any()


def test_masks_without_a_pixel_have_no_parts():
    found = parts(np.zeros((3, 5, 5), np.bool_))
    assert len(found.area) == len(found.picture) == len(found.centroids()) == 0
    assert not found.keep(np.zeros(0, np.bool_)).any()


@settings(max_examples=60, deadline=None)
@given(some_masks)
def test_depth_is_the_distance_to_the_nearest_pixel_outside_the_mask(masks):
    masks[:, 0, 0] = False
    expected = one_by_one(ndi.distance_transform_edt, masks)
    assert np.array_equal(depths(masks), expected.astype(np.float32))
