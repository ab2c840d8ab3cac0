"""Every command with its output on a read-only disk: the fault is found before the work."""

import shutil
import subprocess

import pytest

from bench.fault_commands import COMMANDS, COMPILE
from bench.full_disk import can_mount, mounted

FINGERPRINT = ("make-bags", "slides", "--labels", "labels.csv", "--fingerprint", "inputs.json")
LINES = [
    *(command.line for command in (*COMMANDS, COMPILE)),
    FINGERPRINT,
    ("review", "triage", "--no-browser"),
]


def test_output_that_cannot_be_written_is_found_before_the_work(forks, inputs, tmp_path):
    if not can_mount(tmp_path / "tried"):
        pytest.skip("this user cannot mount a disk")
    with mounted(tmp_path / "disk", 64 << 20):
        work = shutil.copytree(inputs, tmp_path / "disk" / "work")
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "disk"], check=True)
        for line in LINES:
            ended = forks.run(line, work)
            assert ended.status == 1, line
            (said,) = ended.output.splitlines()
            assert said.startswith("error: ") and "cannot be written" in said
        ended = forks.run(("init", "project"), work)
        assert ended.status == 1
        assert len(ended.output.splitlines()) == 1 and "Read-only file system" in ended.output
