from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from cytomil.pixels import pages_of_full_size, read_tiff_pages


def written(**options):
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, bigtiff=options.pop("bigtiff", False)) as file:
        file.write(np.zeros((64, 96, 3), np.uint8), photometric="rgb", **options)
        file.write(np.zeros((32, 48, 3), np.uint8), photometric="rgb", subfiletype=1, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("bigtiff", [False, True])
def test_pages_are_told(bigtiff):
    first, second = read_tiff_pages(io.BytesIO(written(bigtiff=bigtiff, tile=(32, 16))))
    assert (first.width, first.height, first.bits, first.tile) == (96, 64, 8, (16, 32))
    assert first.has_several_tiles
    assert first.peculiarity() is None
    assert (first.is_reduced, second.is_reduced) == (False, True)
    assert pages_of_full_size((first, second)) == 1
    assert pages_of_full_size((first, first)) == 2
    assert read_tiff_pages(io.BytesIO(written()))[0].tile is None


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(cut=st.integers(0, 2000), flips=st.lists(st.tuples(st.integers(0, 600), st.integers(1, 255)), max_size=8))
def test_damage_never_raises(cut, flips):
    damaged = bytearray(written(tile=(32, 16)))
    for place, flip in flips:
        damaged[place] ^= flip
    assert isinstance(read_tiff_pages(io.BytesIO(bytes(damaged[: len(damaged) - cut]))), tuple)


def test_what_is_no_tiff_has_no_pages():
    assert read_tiff_pages(io.BytesIO(b"")) == ()
    assert read_tiff_pages(io.BytesIO(b"\x89PNG\r\n\x1a\n" + bytes(100))) == ()
