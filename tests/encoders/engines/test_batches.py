import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytomil.encoders.engines.engine import batch_of, cache_sized_batch, padded


@pytest.mark.parametrize(("size", "batch"), [(24, 64), (32, 64), (64, 64), (112, 32), (224, 8), (512, 8)])
def test_smaller_cells_go_in_larger_batches(size, batch):
    assert batch_of(size) == batch


@given(st.integers(0, 40), st.integers(1, 9))
def test_batches_hold_every_cell_once_and_black_ones_after_the_last(n, batch):
    pixels = np.random.default_rng(n).integers(1, 256, (n, 2, 2, 3), np.uint8)
    parts = [padded(pixels, start, batch) for start in range(0, n, batch)]
    assert all(part.shape == (batch, 2, 2, 3) and part.flags.c_contiguous for part in parts)
    joined = np.concatenate([*parts, pixels[:0]])
    np.testing.assert_array_equal(joined[:n], pixels)
    assert not joined[n:].any()


def test_on_a_processor_about_the_same_number_of_pixels_go_at_a_time():
    assert cache_sized_batch(96) == 16
    assert cache_sized_batch(32) == 144
    assert cache_sized_batch(512) == 1
