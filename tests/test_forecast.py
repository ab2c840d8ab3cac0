"""How long the whole takes, from timed steps: closed forms, and what holds of any steps."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytomil.progress import Forecast, Pace, Stretch, forecast


def test_an_even_pace_is_no_range():
    assert forecast([Stretch(2, 10)] * 3, elapsed=7, left=100) == Forecast(27, 27, 20, 0.2, 0.2)


def test_the_range_is_from_the_fastest_to_the_slowest_stretch():
    expected = forecast([Stretch(2, 10), Stretch(4, 10), Stretch(3, 10)], elapsed=9, left=100)
    assert expected == Forecast(shortest=29, longest=49, left=40, fastest=0.2, slowest=0.4)


@pytest.mark.parametrize("stretches", [[], [Stretch(2, 1)] * 2, [Stretch(29, 1)]])
def test_too_little_tells_nothing(stretches):
    assert forecast(stretches, elapsed=60, left=100) is None


def test_one_long_step_is_enough():
    assert forecast([Stretch(240, 1)], elapsed=240, left=11) == Forecast(2880, 2880, 2640, 240, 240)


def test_warm_up_counts_for_the_whole_and_not_for_the_pace():
    pace = Pace(total=104, began=1000, warm_up=1)
    pace.step(1, 1050)
    for moment in (1052, 1054, 1056):
        pace.step(1, moment)
    assert pace.forecast() == Forecast(256, 256, 200, 2, 2)


def test_what_needed_no_work_shortens_the_whole_and_says_nothing_of_the_pace():
    pace = Pace(total=20, began=0)
    pace.skip(10, 5)
    pace.step(1, 35)
    assert pace.forecast() == Forecast(305, 305, 270, 30, 30)


def test_moments_are_put_together_to_stretches():
    pace = Pace(total=1000, began=0)
    for moment in (0.1, 1.9, 2.0, 3.0, 4.0):
        pace.step(1, moment)
    assert pace.stretches == [Stretch(2.0, 3), Stretch(2.0, 2)]


def test_time_left_runs_on_between_steps_and_stops_at_nothing():
    pace = Pace(total=3, began=0)
    assert math.isnan(pace.left(10))
    pace.step(1, 60)
    assert pace.left(60) == 120
    assert pace.left(90) == 90
    assert pace.left(500) == 0


@given(
    st.lists(st.tuples(st.floats(0, 100), st.integers(1, 50)), max_size=40),
    st.integers(0, 10_000),
    st.integers(0, 3),
)
def test_whatever_the_steps_the_range_holds_their_mean(steps, left, warm_up):
    pace = Pace(sum(units for _, units in steps) + left, 0.0, warm_up)
    now = 0.0
    for seconds, units in steps:
        now += seconds
        pace.step(units, now)
    expected = pace.forecast()
    if expected is None:
        return
    timed = sum(one.seconds for one in pace.stretches)
    mean = timed / sum(one.units for one in pace.stretches)
    assert expected.fastest <= mean * (1 + 1e-9)
    assert mean <= expected.slowest * (1 + 1e-9)
    assert now <= expected.shortest <= expected.longest
    assert expected.longest == pytest.approx(now + expected.left)
    assert pace.left(now) >= 0
    if left == 0:
        assert expected.shortest == expected.longest == now


@given(st.integers(1, 1000), st.floats(0.01, 100), st.integers(1, 10_000))
def test_an_even_run_is_foreseen_exactly(units, pace_s, left):
    pace = Pace(40_000 * units + left, began=0.0)
    now = 0.0
    while pace.forecast() is None:
        now += pace_s * units
        pace.step(units, now)
    expected = pace.forecast()
    assert expected.shortest == pytest.approx(pace_s * pace.total)
    assert expected.longest == pytest.approx(pace_s * pace.total)
