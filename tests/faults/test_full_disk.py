"""Every command on a disk that is full after some bytes (`python -m bench full_disk` tries more sizes)."""

import pytest

from bench.fault_commands import COMMANDS
from bench.full_disk import DONE, REFUSED, attempt, can_mount, sizes


def outcomes(trial, n, is_disk):
    found = [attempt(trial, size, is_disk) for size in sizes(trial, n, is_disk)]
    assert [fault for _, fault in found if fault] == []
    return {kind for kind, _ in found}


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_command_that_cannot_write_ends_in_one_line_that_names_its_output(trial, command):
    kinds = outcomes(trial(command), 2, is_disk=False)
    assert kinds <= {REFUSED, DONE}
    assert REFUSED in kinds


@pytest.mark.nightly
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_on_a_small_disk(trial, command, tmp_path):
    if not can_mount(tmp_path / "tried"):
        pytest.skip("this user cannot mount a disk")
    assert outcomes(trial(command), 8, is_disk=True) == {REFUSED, DONE}
