"""Every command of the pipeline, killed at file operations and at random times (`python -m bench faults` kills more)."""

import random

import pytest

from bench.fault_commands import COMMANDS, COMPILE
from bench.faults import BETWEEN, FORMER, NEW


def kill(trial, n, seed):
    outcomes = list(trial.kills(n, random.Random(seed)))
    assert [line for outcome in outcomes for line in outcome.faults] == []
    assert len(outcomes) == n
    assert all(outcome.kinds[0] in (FORMER, NEW, BETWEEN) for outcome in outcomes)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_killed_command_leaves_whole_files_and_its_rerun_equals_an_unbroken_run(trial, command):
    # An evaluation takes seconds, most of them for its plots.
    kill(trial(command), 1 if command.name == "evaluate" else 3, seed=0)


@pytest.mark.nightly
@pytest.mark.parametrize("command", (*COMMANDS, COMPILE), ids=lambda command: command.name)
def test_many_kills(trial, command):
    kill(trial(command), 12, seed=1)
