from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cytomil.encoders.transform import CellTransform, decode_cells, decode_cells_for


def picture(width, height, box=None):
    """A black image with a white box (left, top, right, bottom)."""
    pixels = np.zeros((height, width, 3), np.uint8)
    if box:
        left, top, right, bottom = box
        pixels[top:bottom, left:right] = 255
    return Image.fromarray(pixels)


class TestTransform:
    @given(
        width=st.integers(1, 90),
        height=st.integers(1, 90),
        size=st.integers(16, 48),
        crop=st.floats(0.05, 1),
    )
    @settings(max_examples=40)
    def test_any_image_becomes_a_square_of_bytes(self, width, height, size, crop):
        done = CellTransform(size, crop)(picture(width, height))
        assert done.shape == (size, size, 3)
        assert done.dtype == np.uint8

    def test_only_the_centre_is_kept(self):
        """The kept pixels are averages with their nearest neighbours, hence the wider white box."""
        centre = picture(40, 40, (7, 7, 33, 33))
        assert (CellTransform(16, 0.5)(centre) == 255).all()
        assert (CellTransform(16, 0.8)(centre) == 0).any()
        assert (CellTransform(16, 1.0)(centre) == 0).any()

    @pytest.mark.parametrize(("width", "height"), [(80, 40), (40, 80)])
    def test_an_oblong_image_gives_its_middle_square(self, width, height):
        left, top = (width - 40) // 2, (height - 40) // 2
        middle = picture(width, height, (max(left - 3, 0), max(top - 3, 0), left + 43, top + 43))
        assert (CellTransform(20, 1.0)(middle) == 255).all()

    def test_at_its_own_size_an_image_is_unchanged(self):
        pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
        assert np.array_equal(CellTransform(24, 1.0)(Image.fromarray(pixels)), pixels)

    def test_shrinking_averages(self):
        """A checkerboard of single pixels becomes grey, not a pattern."""
        board = (np.indices((96, 96)).sum(axis=0) % 2 * 255).astype(np.uint8)
        done = CellTransform(16, 1.0)(Image.fromarray(np.repeat(board[..., None], 3, axis=2)))
        assert np.abs(done.astype(int) - 127).max() < 12

    def test_its_name_tells_transforms_apart(self):
        base = CellTransform(24, 0.8)
        assert base.sha256 == CellTransform(24, 0.8).sha256
        others = [dataclasses.replace(base, image_size=25), dataclasses.replace(base, center_crop=0.9)]
        assert len({base.sha256, *(other.sha256 for other in others)}) == 3


class TestDecodeCells:
    transform = CellTransform(16, 1.0)

    def test_readable_cells_in_order(self, cell_image):
        encoded = [cell_image(i, 16) for i in range(4)]
        pixels, kept, problems = decode_cells(encoded, list("abcd"), self.transform)
        assert pixels.shape == (4, 16, 16, 3)
        assert pixels.dtype == np.uint8
        assert kept == [0, 1, 2, 3]
        assert problems == []
        alone = [decode_cells([one], ["x"], self.transform)[0][0] for one in encoded]
        assert np.array_equal(pixels, np.stack(alone))

    def test_bad_cells_are_named_and_the_others_keep_their_places(self, cell_image):
        encoded = [b"", cell_image(1), b"text", cell_image(3), cell_image(4)[:30]]
        pixels, kept, problems = decode_cells(encoded, list("abcde"), self.transform)
        assert kept == [1, 3]
        assert len(pixels) == 2
        assert [problem.where for problem in problems] == ["a", "c", "e"]
        assert all(problem.reason and not problem.reason.startswith(problem.where) for problem in problems)

    @pytest.mark.parametrize("encoded", [[], [b"", b"text"]])
    def test_no_readable_cell_gives_an_empty_block(self, encoded):
        pixels, kept, problems = decode_cells(encoded, ["a", "b"][: len(encoded)], self.transform)
        assert pixels.shape == (0, 16, 16, 3)
        assert pixels.dtype == np.uint8
        assert kept == []
        assert len(problems) == len(encoded)

    def test_several_transforms_give_what_each_gives_alone(self, cell_image):
        encoded, names = [cell_image(0), b"text", cell_image(1)], list("abc")
        transforms = [self.transform, CellTransform(24, 0.8)]
        pixels, kept, problems = decode_cells_for(encoded, names, transforms)
        assert kept == [0, 2]
        assert [problem.where for problem in problems] == ["b"]
        for found, transform in zip(pixels, transforms, strict=True):
            assert np.array_equal(found, decode_cells(encoded, names, transform)[0])
