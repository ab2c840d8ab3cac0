"""A file that crashes, blocks or exhausts its reader costs that slide alone."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import h5py
import pytest
from typer.testing import CliRunner

from cytomil.app.cli.app import app
from cytomil.bags import BagInfo, Instance, write_bag
from cytomil.encoders.transform import CellTransform
from cytomil.errors import SlideUnreadableError
from cytomil.features.cells import Preparation
from cytomil.hdf5 import seal_hdf5
from cytomil.slides import Resolutions
from cytomil.triage.apart import ReadingProcess
from cytomil.triage.sources import SlideEntry
from cytomil.triage.whole_slide import SlideReading
from tests.triage.requests import (
    abort,
    answer,
    complain,
    compute_for_ever,
    compute_with_progress,
    fail,
    leave,
    own_pid,
    take_memory,
)
from tests.triage.test_rank import make_road

LINUX_ONLY = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit memory in this way")


@pytest.fixture(scope="module")
def road(shared):
    return shared.folder("road", make_road)


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


@pytest.mark.parametrize("debug", ["", "1"])
def test_what_a_library_prints_is_on_the_screen_only_for_debugging(process, tmp_path, capfd, monkeypatch, debug):
    monkeypatch.setenv("CYTOMIL_DEBUG", debug)
    process.kill()
    assert process.run(tmp_path, complain) == "done"
    process.kill()
    assert ("libhostile" in capfd.readouterr().err) == bool(debug)


def test_a_slide_that_ended_the_process_is_not_tried_again(process, tmp_path):
    for request_ in (leave, answer):
        with pytest.raises(SlideUnreadableError, match="status 7"):
            process.run(tmp_path / "bad.svs", request_)


def test_work_that_advances_may_take_as_long_as_it_needs(process, tmp_path):
    assert process.run(tmp_path, compute_with_progress) == "done"
    process.kill()  # its limit is shorter than others expect


def test_an_idle_process_is_used_again(tmp_path):
    pids = []
    for _ in range(2):
        with ReadingProcess() as process:
            pids.append(process.run(tmp_path, own_pid))
    assert pids[0] == pids[1] != os.getpid()


def test_relative_paths_are_those_of_the_calling_process(bag_of_cells, tmp_path, monkeypatch):
    reading = SlideReading(None, Resolutions({}), tmp_path / "cache", 1)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        bag_of_cells(tmp_path / folder / "bag.h5", 5 if folder == "a" else 9)
        monkeypatch.chdir(tmp_path / folder)
        with ReadingProcess() as process:
            assert process.n_cells(SlideEntry("bag", Path("bag.h5"))) == (5 if folder == "a" else 9)
            slide = process.open(SlideEntry("bag", Path("bag.h5")), reading)
            blocks = slide.blocks(Preparation(CellTransform(8, 1.0)), 4, 1)
            assert [len(block.instance_ids) for block in blocks][:2] == [4, 1 if folder == "a" else 4]


def test_leaving_a_slide_half_read_does_not_wait(bag_of_cells, tmp_path):
    bag_of_cells(tmp_path / "bag.h5", 9)
    reading = SlideReading(None, Resolutions({}), tmp_path / "cache", 1)
    with ReadingProcess() as process:
        slide = process.open(SlideEntry("bag", tmp_path / "bag.h5"), reading)
        blocks = slide.blocks(Preparation(CellTransform(8, 1.0)), 2, 1)
        assert len(next(blocks).instance_ids) == 2
        blocks.close()
        assert process.run(tmp_path, answer) == 42


@pytest.mark.long
def test_three_hostile_slides_among_ten_sound_ones(road, bag_of_cells, tmp_path):
    slides = tmp_path / "slides"
    slides.mkdir()
    for i in range(10):
        bag_of_cells(slides / f"sound-{i}.h5", 20)
    bag_of_cells(slides / "zeroed.h5", 400)
    content = bytearray((slides / "zeroed.h5").read_bytes())
    content[25088 : 25088 + 4096] = bytes(4096)  # HDF5 then follows its heap for ever
    for name in ("zeroed.h5", "zeroed-copy.h5"):
        (slides / name).write_bytes(content)
        seal_hdf5(slides / name)
    bag_of_cells(slides / "declares.h5", 20)
    with h5py.File(slides / "declares.h5", "r+") as file:
        for dataset in file.values():
            dataset.resize(2_000_000_000, axis=0)
        file.attrs["n_instances"] = 2_000_000_000
    seal_hdf5(slides / "declares.h5")
    out = tmp_path / "out"
    line = ["rank", str(slides), "--model", str(road / "model"), "--out", str(out)]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 3, result.output
    listed = {slide["slide"]: slide for slide in json.loads((out / "triage.json").read_text())["slides"]}
    refused = {name for name, slide in listed.items() if slide["call"] == "not assessed"}
    assert refused == {"zeroed.h5", "zeroed-copy.h5", "declares.h5"}
    assert len(listed) == 13
    assert all(listed[name]["reason"] for name in refused)


def test_a_slide_that_ended_the_process_is_tried_again_once_it_is_forgiven(process, tmp_path):
    for request in (abort, answer):
        with pytest.raises(SlideUnreadableError, match="its reader stopped"):
            process.run(tmp_path / "slide.svs", request)
    process.forgive(tmp_path / "slide.svs")
    assert process.run(tmp_path / "slide.svs", answer) == 42
