"""A file that crashes, blocks or exhausts its reader costs that slide alone."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from cytomil import limits
from cytomil.bags import BagInfo, Instance, write_bag
from cytomil.encoders.transform import CellTransform
from cytomil.errors import SlideUnreadableError
from cytomil.features.cells import Preparation
from cytomil.slides import Resolutions
from cytomil.triage.apart import ReadingProcess
from cytomil.triage.sources import Found
from cytomil.triage.whole_slide import SlideReading

LINUX_ONLY = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit memory in this way")


def abort(served):
    os.abort()


def leave(served):
    os._exit(7)


def take_memory(served):
    return len(bytearray(limits.MEMORY_BYTES + 1))


def allow_one_second():
    limits.CPU_S, limits._RENEWED_EVERY_S = 1, 0.2
    limits._imposed[0]._until = 0.0
    limits.progress(0.001)


def compute_for_ever(served):
    allow_one_second()
    while True:
        pass


def compute_with_progress(served):
    allow_one_second()
    started = time.process_time()
    while time.process_time() < started + 3:
        limits.progress()
    return "done"


def fail(served):
    raise FileNotFoundError(2, "no such file")


def answer(served):
    return 42


@pytest.fixture
def bag_of_cells(cell_image):
    def write(path, n):
        write_bag(path, BagInfo("bag", 0), [Instance(f"c{i}", cell_image(i)) for i in range(n)])

    return write


@pytest.fixture
def process():
    with ReadingProcess() as process:
        yield process


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (abort, r"killed by signal 6"),
        (leave, r"it ended with status 7"),
        (compute_for_ever, r"it computed for 15 s without progress"),
        (fail, r"no such file"),
        pytest.param(take_memory, r"needs more than 4 GB of memory", marks=LINUX_ONLY),
    ],
)
def test_the_slide_is_refused_in_one_line_and_the_next_one_is_read(process, tmp_path, request_, reason):
    with pytest.raises(SlideUnreadableError, match=reason) as refused:
        process.run(tmp_path / "bad.svs", request_)
    assert str(refused.value).startswith(f"{tmp_path / 'bad.svs'}: ")
    assert "\n" not in str(refused.value)
    assert process.run(tmp_path / "good.svs", answer) == 42


def test_work_that_advances_may_take_as_long_as_it_needs(process, tmp_path):
    assert process.run(tmp_path, compute_with_progress) == "done"
    process.kill()  # its limit is shorter than others expect


def test_an_idle_process_is_used_again(tmp_path):
    pids = []
    for _ in range(2):
        with ReadingProcess() as process:
            pids.append(process.run(tmp_path, own_pid))
    assert pids[0] == pids[1] != os.getpid()


def own_pid(served):
    return os.getpid()


def test_relative_paths_are_those_of_the_calling_process(bag_of_cells, tmp_path, monkeypatch):
    reading = SlideReading(None, Resolutions({}), tmp_path / "cache", 1)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        bag_of_cells(tmp_path / folder / "bag.h5", 5 if folder == "a" else 9)
        monkeypatch.chdir(tmp_path / folder)
        with ReadingProcess() as process:
            assert process.n_cells(Found("bag", Path("bag.h5"))) == (5 if folder == "a" else 9)
            slide = process.open(Found("bag", Path("bag.h5")), reading)
            blocks = slide.blocks(Preparation(CellTransform(8, 1.0)), 4, 1)
            assert [len(block.instance_ids) for block in blocks][:2] == [4, 1 if folder == "a" else 4]


def test_leaving_a_slide_half_read_does_not_wait(bag_of_cells, tmp_path):
    bag_of_cells(tmp_path / "bag.h5", 9)
    reading = SlideReading(None, Resolutions({}), tmp_path / "cache", 1)
    with ReadingProcess() as process:
        slide = process.open(Found("bag", tmp_path / "bag.h5"), reading)
        blocks = slide.blocks(Preparation(CellTransform(8, 1.0)), 2, 1)
        assert len(next(blocks).instance_ids) == 2
        blocks.close()
        assert process.run(tmp_path, answer) == 42
