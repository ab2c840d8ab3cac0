import sys

import pytest

from bench.child import call, run

HOLD = "x = b'x' * {mb}_000_000; import time; time.sleep(0.8); print('done')"


def test_a_childs_memory_is_its_own_and_not_its_parents():
    mine = b"x" * 250_000_000
    small = run([sys.executable, "-c", HOLD.format(mb=1)])
    large = run([sys.executable, "-c", HOLD.format(mb=150)])
    assert len(mine) and small.peak_mb < 100
    assert 150 < large.peak_mb < 230
    assert large.peak_mb - small.peak_mb == pytest.approx(150, abs=15)
    assert large.stdout == "done\n"
    assert large.seconds >= 0.8


TWICE = """
import subprocess, sys
for process in [subprocess.Popen([sys.executable, "-c", sys.argv[1]]) for _ in range(2)]:
    process.wait()
"""


def test_several_processes_are_taken_together():
    child = run([sys.executable, "-c", TWICE, HOLD.format(mb=100)])
    assert child.peak_mb < 150
    assert child.together_mb > 200


def test_a_failure_says_what_the_child_said():
    with pytest.raises(SystemExit, match="no luck"):
        run([sys.executable, "-c", "import sys; sys.exit('no luck')"])
    assert run([sys.executable, "-c", "raise SystemExit(3)"], accepted=(0, 3)).status == 3


def test_a_program_that_is_not_there():
    with pytest.raises(SystemExit, match="could not be started"):
        run(["no-such-program-anywhere"])


def test_a_function_is_called_in_a_process_of_its_own():
    from bench.machine import cpu_features

    features, child = call(cpu_features)
    assert features == cpu_features()
    assert child.peak_mb > 1
