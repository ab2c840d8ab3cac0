import numpy as np
import pytest
from scipy import ndimage as ndi

from cytomil.morphology.measure import measure, smoothed


@pytest.mark.parametrize("scale", [0.7, 1.4, 2.8])
def test_each_image_is_smoothed_by_a_gaussian_that_is_mirrored_at_the_border(scale):
    images = np.random.default_rng(0).random((2, 20, 20, 3), np.float32)
    expected = ndi.gaussian_filter(images, (0, scale, scale, 0), truncate=3)
    np.testing.assert_allclose(smoothed(images, scale), expected, atol=1e-6)


def test_a_cell_in_other_company_is_measured_alike():
    cells = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3)).astype(np.uint8)
    assert np.array_equal(measure(cells)[3:4], measure(cells[3:4]))
