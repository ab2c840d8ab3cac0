from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytomil.encoders.transform import CellTransform, decode_cells
from cytomil.features.cells import EncodedCells, Preparation, feed, spans
from cytomil.morphology.measure import SIDE, describe


@given(n=st.integers(0, 700), batch_size=st.integers(1, 300))
def test_the_pieces_cover_all_cells_once_and_fill_batches_exactly(n, batch_size):
    pieces = list(spans(n, batch_size))
    assert [i for start, stop in pieces for i in range(start, stop)] == list(range(n))
    stops = {stop for _, stop in pieces}
    assert {min(i, n) for i in range(batch_size, n + batch_size, batch_size)} <= stops


@pytest.fixture
def encoded(cell_image):
    images = [cell_image(i, 12) for i in range(150)]
    images[3] = images[70] = b"no image"
    images[149] = images[149][:30]
    return images


def blocks(encoded, batch_size, workers, described=False):
    def piece(start, stop):
        names = [f"c{i}" for i in range(start, stop)]
        return EncodedCells(names, np.column_stack([np.arange(start, stop)] * 2), encoded[start:stop])

    pieces = (partial(piece, *span) for span in spans(len(encoded), batch_size))
    return list(feed(pieces, Preparation(CellTransform(16, 1.0), described), batch_size, workers))


@pytest.mark.parametrize("batch_size", [1, 64, 100, 149, 400])
def test_blocks_are_the_same_whatever_the_threads(encoded, batch_size):
    one, many = blocks(encoded, batch_size, 1), blocks(encoded, batch_size, 4)
    counted = [len(block.instance_ids) + len(block.problems) for block in one]
    assert counted == [batch_size] * (150 // batch_size) + [150 % batch_size] * (150 % batch_size > 0)
    for a, b in zip(one, many, strict=True):
        assert a.instance_ids == b.instance_ids
        assert a.problems == b.problems
        assert np.array_equal(a.pixels, b.pixels)
        assert np.array_equal(a.coords, b.coords)
    ids = [name for block in one for name in block.instance_ids]
    assert ids == [f"c{i}" for i in range(150) if i not in (3, 70, 149)]
    assert [f"c{x}" for block in one for x, _ in block.coords] == ids
    assert [problem.where for block in one for problem in block.problems] == ["c3", "c70", "c149"]


@pytest.mark.parametrize("batch_size", [1, 100, 400])
def test_cells_are_described_at_their_own_size_where_asked(encoded, batch_size):
    plain, described = blocks(encoded, batch_size, 2), blocks(encoded, batch_size, 3, described=True)
    assert all(block.morphology.shape == (len(block.instance_ids), 0) for block in plain)
    assert [block.instance_ids for block in plain] == [block.instance_ids for block in described]
    assert [block.problems for block in plain] == [block.problems for block in described]
    pixels, kept, _ = decode_cells(encoded, [""] * len(encoded), CellTransform(SIDE, 1.0))
    found = np.concatenate([block.morphology for block in described])
    assert len(kept) == len(found) == 147
    assert np.array_equal(found, describe(pixels))
