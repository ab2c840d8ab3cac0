from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.timing import Spread, Timing, interleaved

seconds = st.floats(0.001, 1000)


class Clock:
    """Time passes only while a candidate works."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def work(self, *durations):
        left = list(durations)

        def candidate():
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return candidate


def test_warm_up_does_not_count():
    clock = Clock()
    timings = interleaved({"a": clock.work(100, 1, 2, 3)}, repeats=3, warm_up=1, clock=clock)
    assert timings["a"].seconds == pytest.approx((1, 2, 3))


def test_candidates_take_turns():
    order = []
    interleaved({name: lambda name=name: order.append(name) for name in "abc"}, repeats=3, warm_up=0)
    rounds = [order[i : i + 3] for i in range(0, 9, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len({one[0] for one in rounds}) == 3, "another candidate should start each round"


def test_a_slow_round_slows_both_and_leaves_the_ratio():
    clock = Clock()
    timings = interleaved({"a": clock.work(1, 10, 1), "b": clock.work(3, 30, 3)}, repeats=3, warm_up=0, clock=clock)
    assert timings["a"].times_faster_than(timings["b"]) == Spread(3, 3, 3)


@given(st.lists(st.tuples(seconds, seconds), min_size=1, max_size=9))
def test_ratios_turn_round(pairs):
    a, b = (Timing(tuple(column)) for column in zip(*pairs, strict=True))
    faster, slower = a.times_faster_than(b), b.times_faster_than(a)
    assert faster.low <= faster.median <= faster.high
    assert faster.low * slower.high == pytest.approx(1)


@given(st.lists(seconds, min_size=1, max_size=9), st.integers(1, 1000))
def test_rate_times_seconds_is_the_number_of_things(taken, n):
    timing = Timing(tuple(taken))
    assert timing.per_second(n).low * timing.spread.high == pytest.approx(n)
    ordered = sorted(taken)
    assert all(a <= b for a, b in pairwise([ordered[0], timing.spread.median, ordered[-1]]))


def test_timings_of_different_runs_have_no_ratio():
    with pytest.raises(ValueError):
        Timing((1.0,)).times_faster_than(Timing((1.0, 2.0)))


def test_unequal_work_is_compared_by_the_thing():
    loop, engine = Timing((2.0, 4.0)), Timing((1.0, 2.0))
    assert engine.per(100).times_faster_than(loop.per(50)) == Spread(4, 4, 4)
    assert engine.per(100).per_second(1) == engine.per_second(100)


def test_no_repeats_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        interleaved({"a": lambda: None}, repeats=0)
    with pytest.raises(ValueError, match="no values"):
        Spread.of([])


def test_a_spread_as_it_is_read():
    assert Spread(2.31, 2.2, 2.4).shown() == "2.31 (2.20–2.40)"
    assert Spread(1234.4, 1234.4, 1234.4).shown(0) == "1,234"
