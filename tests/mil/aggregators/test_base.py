"""Numbers gathered block by block."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cytomil.mil.aggregators.base import Gathered


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.sampled_from([torch.float32, torch.int64, torch.bool]))
def test_blocks_of_any_size_come_out_whole_and_in_order(sizes, dtype):
    numbers = (torch.arange(sum(sizes)) % 3).to(dtype)
    gathered = Gathered()
    for block in numbers.split(sizes):
        gathered.add(block)
    assert gathered.all().dtype == dtype
    assert torch.equal(gathered.all(), numbers)


def test_what_was_gathered_does_not_follow_its_source():
    column = torch.zeros(4, 2)
    gathered = Gathered()
    gathered.add(column[:, 1])
    column += 1
    assert torch.equal(gathered.all(), torch.zeros(4))


def test_nothing_gathered_is_refused():
    with pytest.raises(ValueError, match="no numbers"):
        Gathered().all()
