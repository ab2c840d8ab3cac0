import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytomil.features.embed import embed_in_orientations


def cells(seed=0, n=3, side=6):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def embed(pixels):
    """Linear in every pixel by itself, so that no two orientations of a cell are alike to it."""
    weights = np.random.default_rng(1).normal(size=(pixels[0].size, 4))
    return (pixels.reshape(len(pixels), -1) / 255 @ weights).astype(np.float32)


def turn(pixels, quarters, mirrored):
    return np.rot90(pixels[:, ::-1] if mirrored else pixels, quarters, axes=(1, 2))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(0, 3), st.booleans())
def test_after_eight_no_turn_or_mirror_image_changes_anything(seed, quarters, mirrored):
    some = cells(seed)
    found = embed_in_orientations(embed, turn(some, quarters, mirrored), 8)
    np.testing.assert_allclose(found, embed_in_orientations(embed, some, 8), atol=1e-5)


@pytest.mark.parametrize(("n", "turns"), [(2, (0, 2)), (4, (0, 1, 2, 3))])
def test_two_and_four_are_the_mean_over_turns(n, turns):
    some = cells()
    expected = np.mean([embed(turn(some, quarters, False)) for quarters in turns], axis=0)
    np.testing.assert_allclose(embed_in_orientations(embed, some, n), expected, atol=1e-6)


def test_one_is_the_embedding_itself():
    assert np.array_equal(embed_in_orientations(embed, cells(), 1), embed(cells()))


@pytest.mark.parametrize("n", [1, 8])
def test_no_cells_give_no_embeddings(n):
    none = np.zeros((0, 6, 6, 3), np.uint8)
    assert embed_in_orientations(lambda pixels: np.zeros((len(pixels), 4), np.float32), none, n).shape == (0, 4)
