"""Items over processes of this machine: nothing is lost with one of them, and none outlives who asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from cytomil.errors import NoCellsError, TriageModelError, WorkersError
from cytomil.progress import Silent
from cytomil.workers import WorkerFailure, open_workers
from cytomil.workers.local import ChildProcess
from tests.workers.jobs import Square


class Noting(Silent):
    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


def run(job, numbers, listener=None, **more):
    return open_workers("", 2).map(job, numbers, listener or Silent(), "squares", "numbers", **more)


def children():
    """This process's children; other tests of it may have left helpers of a library behind."""
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_results_come_in_order_from_processes_that_start_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = children()
    listener = Noting()
    assert run(Square(tmp_path), list(range(12)), listener) == [(n**2, str(tmp_path / "relative")) for n in range(12)]
    starts = [line.split() for line in (tmp_path / "starts").read_text().splitlines()]
    assert 1 <= len({process for process, *_ in starts}) == len(starts) <= 2
    assert str(os.getpid()) not in {process for process, *_ in starts}
    assert all(int(cores) >= 1 for _, cores, _ in starts)
    assert listener.notes == ["started"]
    assert children() == before


def test_a_lost_process_costs_nothing(tmp_path):
    results = run(Square(tmp_path, deadly=(2, 5)), list(range(6)))
    assert [value for value, _ in results] == [0, 1, 4, 9, 16, 25]


def test_what_kills_every_process_is_given_up_with_the_reason(tmp_path):
    results = run(Square(tmp_path, deadly=(1,), times=9), [0, 1, 2, 3])
    assert [result[0] for i, result in enumerate(results) if i != 1] == [0, 4, 9]
    assert results[1] == WorkerFailure("the worker failed 3 times on it (killed by signal 9).")
    assert (tmp_path / "deaths-1").read_text() == "xxx"


def test_a_users_mistake_is_raised_as_it_is(tmp_path):
    with pytest.raises(NoCellsError, match=r"^no cells there\.$"):
        run(Square(tmp_path, broken="work"), [1, 2])
    with pytest.raises(TriageModelError, match=r"^no model there\.$"):
        run(Square(tmp_path, broken="start"), [1, 2])


def test_the_beginning_is_told_once_and_not_if_no_process_starts(tmp_path):
    begun = []
    run(Square(tmp_path), [1, 2, 3], on_begin=lambda: begun.append(1))
    assert begun == [1]
    with pytest.raises(TriageModelError):
        run(Square(tmp_path, broken="start"), [1, 2, 3], on_begin=lambda: begun.append(2))
    assert begun == [1]


def test_processes_that_do_not_start_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(WorkersError, match=r"does not start: it ended with status 1\. Use --workers 1"):
        run(Square(tmp_path), [1, 2])


def test_an_interruption_ends_them(tmp_path):
    class Impatient(Silent):
        def track(self, items, description, total=None, unit=""):
            for item in items:
                yield item
                raise KeyboardInterrupt

    before = children()
    with pytest.raises(KeyboardInterrupt):
        run(Square(tmp_path), list(range(50)), Impatient())
    assert children() == before


def test_they_end_with_a_process_that_is_killed(tmp_path):
    script = (
        "import time\nfrom cytomil.workers.local import ChildProcess\n"
        "print(ChildProcess().pid, flush=True)\ntime.sleep(600)"
    )
    asking = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    member = psutil.Process(int(asking.stdout.readline()))
    asking.send_signal(signal.SIGKILL)
    asking.wait()
    deadline = time.monotonic() + 60
    while member.is_running() and member.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_cannot_be_loaded_is_raised_and_not_waited_for():
    process = ChildProcess()
    try:
        answer = process.send(b"no pickle")
        assert "pickle" in str(answer.error) or "invalid load key" in str(answer.error)
    finally:
        process.kill()
