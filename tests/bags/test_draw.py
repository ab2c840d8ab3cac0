import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cytomil.bags.bag_file import ALL, Draw


@given(most=st.integers(0, 50), n=st.integers(0, 60), seed=st.integers(0, 5), bag_id=st.text(max_size=5))
def test_as_many_as_asked_for_none_twice_in_order_and_always_the_same(most, n, seed, bag_id):
    draw = Draw(most, seed)
    places = draw.indices(bag_id, n)
    assert len(places) == draw.count(n) == (min(n, most) if most else n)
    assert (np.diff(places) > 0).all()
    assert set(places.tolist()) <= set(range(n))
    assert np.array_equal(places, Draw(most, seed).indices(bag_id, n))


def test_another_seed_or_bag_is_another_draw():
    drawn = [Draw(10, seed).indices(bag_id, 1000).tolist() for seed, bag_id in ((0, "a"), (1, "a"), (0, "b"))]
    assert len({tuple(one) for one in drawn}) == 3


def test_every_cell_has_the_same_chance():
    counts = np.bincount(np.concatenate([Draw(20, seed).indices("a", 100) for seed in range(500)]), minlength=100)
    assert 60 < counts.min() <= counts.max() < 145


def test_by_default_all_are_read():
    assert ALL.indices("a", 7).tolist() == list(range(7))
