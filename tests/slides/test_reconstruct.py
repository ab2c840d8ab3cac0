from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.morphology import reconstruction

from cytomil.slides.tiles import reconstruct

MASKS = hnp.arrays(np.int16, hnp.array_shapes(min_dims=2, max_dims=2, max_side=24), elements=st.integers(0, 300))


@given(MASKS, st.integers(0, 40))
def test_it_is_the_textbook_reconstruction(mask, drop):
    seed = np.maximum(mask - drop, 0).astype(np.int16)
    assert np.array_equal(reconstruct(seed, mask), reconstruction(seed, mask))


@pytest.mark.parametrize("top", [9, 255, 256, 3000])
def test_one_seed_floods_a_winding_corridor_to_its_end(top):
    """Far to spread and beyond the narrow integers: still nothing is cut short."""
    mask = np.zeros((41, 41), np.int16)
    mask[::2] = top
    mask[1::4, -1] = mask[3::4, 0] = top
    seed = np.zeros_like(mask)
    seed[0, 0] = top
    assert np.array_equal(reconstruct(seed, mask), mask)
