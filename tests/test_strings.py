"""A sequence of strings in one block: it behaves as a tuple."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytomil.bags.bag_file import Strings

_TEXTS = st.lists(st.text(st.characters(), max_size=8), max_size=20)


@given(_TEXTS, st.slices(20))
def test_it_behaves_as_a_tuple(texts, part):
    found = Strings(texts)
    assert found == tuple(texts)
    assert list(found) == texts
    assert len(found) == len(texts)
    assert found[part] == tuple(texts)[part]
    assert [found[i] for i in range(-len(texts), len(texts))] == texts * 2
    assert pickle.loads(pickle.dumps(found)) == found
    assert hash(Strings(texts)) == hash(found)
    assert all(text in found for text in texts)


@given(_TEXTS, _TEXTS)
def test_what_is_added_comes_last(first, second):
    found = Strings(first)
    found.extend(second)
    assert found == [*first, *second]
    assert (found == Strings(first)) is (not second)


@pytest.mark.parametrize("place", [0, -1, 5])
def test_a_place_that_is_not_there(place):
    with pytest.raises(IndexError):
        _ = Strings()[place]
