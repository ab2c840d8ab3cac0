"""Inputs that vanish while they are read, a clock that is set, two processes with one output."""

import shutil

import pytest

from bench.fault_commands import COMMANDS, contents
from bench.faults import NEW
from bench.forked import Order

BY_NAME = {command.name: command for command in COMMANDS}


@pytest.fixture
def work(inputs, tmp_path):
    return shutil.copytree(inputs, tmp_path / "work")


@pytest.mark.parametrize(
    ("name", "vanishing", "vanishes_with", "status"),
    [
        ("pretrain", "bags/train-03.h5", "bags.csv", 1),
        ("embed", "bags/train-03.h5", "bags.csv", 3),
        ("fit-mil", "features/train-03.h5", "features.csv", 1),
        ("evaluate", "features/test-03.h5", "features.csv", 1),
    ],
)
def test_an_input_that_vanishes_while_it_is_read_is_named(forks, work, name, vanishing, vanishes_with, status):
    ended = forks.run(BY_NAME[name].line, work, vanishing=vanishing, vanishes_with=vanishes_with)
    assert not (work / vanishing).exists()
    assert "error: " not in ended.output or ended.output.count("error: ") == 1
    assert ended.status == status, ended.output
    assert vanishing.rpartition("/")[2].removesuffix(".h5") in ended.output
    assert [name for name in contents(work) if ".partial" in name] == []


@pytest.mark.parametrize("name", ["make-bags --labels", "embed", "rank"])
@pytest.mark.parametrize("clock", [-400 * 86_400.0, 400 * 86_400.0], ids=["back", "ahead"])
def test_a_killed_run_goes_on_after_the_clock_was_set(trial, name, clock):
    trial = trial(BY_NAME[name])
    with trial.working(1):
        assert trial.run(kill_at=trial.operations[1] // 2).is_killed
        ended = trial.run(clock=clock)
        assert ended.status == 0, ended.output
        assert contents(trial.work) == trial.unbroken[1]


@pytest.mark.parametrize("name", ["make-bags", "embed", "fit-mil", "rank"])
def test_two_processes_with_one_output_leave_the_output_of_one(trial, forks, name):
    trial = trial(BY_NAME[name])
    with trial.working(0):
        ended = forks.run_together(
            [Order(line, str(trial.work)) for line in (trial.command.former, trial.command.line)]
        )
        assert 0 in [one.status for one in ended]
        for one in ended:
            assert one.status == 0 or (one.status == 1 and "is being written by" in one.output), one.output
        again = trial.run()
        assert again.status == 0, again.output
        assert trial.judged(1) == (NEW, [])
