"""What a person is told of time, memory and disk before a long command: words, when, and that they fit a screen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytomil.app.cli.console import RichListener, duration, forecast_lines, size
from cytomil.progress import Forecast, Memory, Work

NO_GPU = "No GPU was found. One is used automatically; docs/benchmarks.md has its gain."


class Clock:
    """Seconds that pass only when a test lets them."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def shown(capsys):
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err.splitlines()


def run_through(work, seconds, units=1):
    clock = Clock()
    with RichListener(clock).whole(work) as count:
        for step in seconds:
            clock.now += step
            count.step(units)


def expect(total, pace, slowest=None):
    slowest = slowest or pace
    return Forecast(total * pace, total * slowest, total * slowest, pace, slowest)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0 seconds"),
        (1, "1 second"),
        (95, "95 seconds"),
        (119, "120 seconds"),
        (120, "2 minutes"),
        (754, "13 minutes"),
        (7_199, "120 minutes"),
        (12_600, "3.5 hours"),
        (200_000, "2.3 days"),
    ],
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("n_bytes", "words"), [(1, "1 MB"), (45e6, "45 MB"), (1_234e6, "1.2 GB"), (123e6, "120 MB"), (999.9e6, "1 GB")]
)
def test_sizes_in_words(n_bytes, words):
    assert size(n_bytes) == words


@pytest.mark.parametrize(
    ("work", "expected", "lines"),
    [
        (
            Work(3000, "cells", disk=12_300_000),
            expect(3000, 1 / 30, 1 / 25),
            ["about 100 seconds to 2 minutes for 3,000 cells, 25 to 30 a second, 12 MB of disk"],
        ),
        (Work(12, "whole slides"), expect(12, 45), ["about 9 minutes for 12 whole slides, 45 seconds each"]),
        (
            Work(4000, "steps", disk=10**8, memory=lambda: Memory(2_400_000_000, 21_000_000_000), without_gpu=True),
            expect(4000, 2, 2.5),
            [
                "about 2.2 to 2.8 hours for 4,000 steps, 2 to 2.5 seconds each",
                "2.4 GB of memory (21 GB more are free), 100 MB of disk",
                NO_GPU,
            ],
        ),
    ],
)
def test_lines(work, expected, lines):
    assert forecast_lines(work, expected) == lines


@pytest.mark.parametrize(
    ("without_gpu", "total", "told"), [(True, 601, True), (True, 599, False), (False, 9_999, False)]
)
def test_a_gpu_is_spoken_of_only_where_there_is_none_and_the_work_is_long(without_gpu, total, told):
    lines = forecast_lines(Work(total, "cells", without_gpu=without_gpu), expect(total, 1))
    assert (NO_GPU in lines) == told


@given(
    st.integers(1, 10**8),
    st.sampled_from(["cells", "steps", "whole slides"]),
    st.floats(1e-4, 1e4),
    st.floats(1, 100),
    st.integers(0, 10**13),
    st.tuples(st.integers(0, 10**13), st.integers(0, 10**13)),
)
def test_every_line_fits_eighty_columns(total, unit, pace, spread, disk, memory):
    work = Work(total, unit, disk=disk, memory=lambda: Memory(*memory), without_gpu=True)
    for line in forecast_lines(work, expect(total, pace, pace * spread)):
        assert len(line) <= 80, line


def test_it_is_told_once_and_as_soon_as_three_stretches_tell(capsys):
    run_through(Work(1000, "cells", warm_up=1), [9.0, *[2.0] * 50], units=10)
    assert shown(capsys) == ["about 3.5 minutes for 1,000 cells, 5 a second"]


def test_a_range_within_one_unit_names_it_once():
    (line,) = forecast_lines(Work(100, "slides"), expect(100, 1, 10))
    assert line == "about 100 seconds to 17 minutes for 100 slides, 1 to 10 seconds each"


def test_a_short_run_is_told_nothing(capsys):
    run_through(Work(9, "cells"), [2.0] * 9)
    assert shown(capsys) == []


def test_after_the_first_of_slow_slides(capsys):
    run_through(Work(12, "whole slides", without_gpu=True), [240.0] * 2)
    assert shown(capsys) == ["about 48 minutes for 12 whole slides, 4 minutes each", NO_GPU]


def test_slides_that_were_finished_before_do_not_make_the_others_look_quick(capsys):
    clock = Clock()
    with RichListener(clock).whole(Work(12, "whole slides")) as count:
        for _ in range(10):
            clock.now += 0.1
            count.skip(1)
        clock.now += 60
        count.step(1)
    assert shown(capsys) == ["about 2 minutes for 12 whole slides, 60 seconds each"]
