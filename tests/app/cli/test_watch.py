"""rank --watch in a process of its own, ended by Ctrl-C."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from cytomil.bags import read_manifest
from cytomil.files import is_sealed
from tests.triage.test_rank import make_road

pytestmark = pytest.mark.long  # processes that start, load a model and wait


@pytest.fixture(scope="module")
def road(shared):
    return shared.folder("road", make_road)


def start(folder, road, out):
    line = [sys.executable, "-m", "cytomil", "rank", folder, "--model", road / "model", "--out", out]
    line += ["--watch", "--watch-s", "0.2", "--device", "cpu", "--json"]
    return subprocess.Popen(
        [str(word) for word in line],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder.parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )


def wait_until(true, seconds=120):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def stop(process):
    """Ctrl-C, which the whole group of processes gets."""
    os.killpg(process.pid, signal.SIGINT)
    return process.communicate(timeout=120)


@pytest.mark.parametrize(("is_damaged", "status"), [(False, 0), (True, 3)])
def test_ctrl_c_ends_it_with_a_whole_worklist_and_its_status(road, tmp_path, is_damaged, status):
    folder, out = tmp_path / "slides", tmp_path / "out"
    folder.mkdir()
    manifest = read_manifest(road / "bags")
    shutil.copy(manifest.file_of(manifest.select("test")[0]), folder / "a.h5")
    process = start(folder, road, out)
    wait_until((out / "triage.json").exists)
    if is_damaged:
        (folder / "b.svs").write_text("these are words")
    wait_until(lambda: len(json.loads((out / "triage.json").read_text())["slides"]) == 1 + is_damaged)
    document, told = stop(process)
    assert process.returncode == status, told
    assert "Waiting until copied completely: a.h5; Ctrl-C ends." in told
    assert "Stopped. The worklist is complete" in told
    written = json.loads((out / "triage.json").read_text())
    assert is_sealed(written)
    assert [one["slide"] for one in json.loads(document)["slides"]] == [one["slide"] for one in written["slides"]]
    assert (out / "report.html").is_file()


def test_ctrl_c_before_any_slide_is_no_failure(road, tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    process = start(folder, road, tmp_path / "out")
    line = process.stderr.readline()
    while line and "Waiting for new slides" not in line:
        line = process.stderr.readline()
    document, told = stop(process)
    assert (process.returncode, document) == (0, "")
    assert "No worklist was written" in told
