import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from skimage.filters import threshold_otsu

from cytomil.morphology.masks import thresholds

values_of_eight_bits = stn.arrays(np.float32, (2, 16, 16), elements=st.integers(0, 255).map(float), fill=st.nothing())


@settings(max_examples=60, deadline=None)
@given(values_of_eight_bits, stn.arrays(np.bool_, (2, 16, 16)))
def test_each_picture_is_parted_as_scikit_image_does(values, among):
    values[:, 0, :2], among[:, 0, :2] = (0, 255), True
    found = thresholds(values, among)
    for picture, mask, threshold in zip(values, among, found, strict=True):
        expected = threshold_otsu(picture[mask])
        # Where thresholds are equally good, either may be taken.
        assert spread_between(picture[mask], threshold) == pytest.approx(spread_between(picture[mask], expected))


def spread_between(values, threshold):
    dark, light = values[values > threshold].astype(float), values[values <= threshold].astype(float)
    return len(dark) * len(light) * (dark.mean() - light.mean()) ** 2


def test_the_threshold_is_the_middle_of_the_last_light_bin():
    values = np.zeros((1, 8, 8), np.float32)
    values[0, 4:] = 1
    assert thresholds(values, np.ones_like(values, np.bool_)) == pytest.approx(0.5 / 256)


@pytest.mark.parametrize("value", [0.0, 0.3, 5.5])
def test_nothing_lies_above_the_threshold_of_values_that_all_but_agree(value):
    values = np.full((2, 8, 8), value, np.float32)
    values[1, ::2] = np.nextafter(np.float32(value), np.float32(6))
    found = thresholds(values, np.ones_like(values, np.bool_))
    assert not (values > found[:, None, None]).any()


def test_without_pixels_the_threshold_is_nought():
    assert thresholds(np.ones((1, 8, 8), np.float32), np.zeros((1, 8, 8), np.bool_)) == 0
