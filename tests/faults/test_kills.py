"""Every command of the pipeline, killed at file operations and at random times (`python -m bench faults` kills more)."""

import random

import pytest

from bench.fault_commands import COMMANDS, COMPILE
from bench.faults import BETWEEN, FORMER, NEW, Trial


def killed(forks, inputs, command, root, n, seed=0):
    outcomes = list(Trial.prepare(forks, command, inputs, root).kills(n, random.Random(seed)))
    assert [line for outcome in outcomes for line in outcome.faults] == []
    assert len(outcomes) == n
    assert all(outcome.kinds[0] in (FORMER, NEW, BETWEEN) for outcome in outcomes)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_killed_command_leaves_whole_files_and_its_rerun_equals_an_unbroken_run(forks, inputs, command, tmp_path):
    killed(forks, inputs, command, tmp_path, 3)


@pytest.mark.long
@pytest.mark.parametrize("command", (*COMMANDS, COMPILE), ids=lambda command: command.name)
def test_many_kills(forks, inputs, command, tmp_path):
    killed(forks, inputs, command, tmp_path, 12, seed=1)
