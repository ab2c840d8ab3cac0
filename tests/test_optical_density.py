import numpy as np

from cytomil.pixels import optical_density


def test_white_has_none_and_halving_the_light_adds_log_2():
    found = optical_density(np.array([[255, 127, 63, 0]], np.uint8))
    np.testing.assert_allclose(found, np.log([[1, 2, 4, 256]]), rtol=1e-6)
    assert found.dtype == np.float32
