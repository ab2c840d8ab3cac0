"""What all processes of a run share is made once, is whole, and is seen to be left alone."""

import os
import subprocess
import sys

import pytest

from tests.shared import Shared

MAKE = """
import os, sys, time
from pathlib import Path
from tests.shared import Shared

def make(folder):
    time.sleep(0.2)
    (folder / "made-by").write_text(str(os.getpid()))

print((Shared(Path(sys.argv[1])).folder("slow", make) / "made-by").read_text())
"""


def write(text):
    return lambda folder: (folder / "file.txt").write_text(text)


def test_two_processes_at_once_make_it_once(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    asking = [
        subprocess.Popen([sys.executable, "-c", MAKE, tmp_path], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    first, second = (process.communicate()[0] for process in asking)
    assert first == second
    assert int(first) in {process.pid for process in asking}


def test_what_failed_half_way_is_made_anew(tmp_path):
    def fail(folder):
        (folder / "half.txt").write_text("")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        Shared(tmp_path).folder("a", fail)
    folder = Shared(tmp_path).folder("a", write("whole"))
    assert [file.name for file in folder.iterdir()] == ["file.txt"]
    assert Shared(tmp_path).folder("a", fail) == folder


def test_objects_are_copies_that_one_test_cannot_spoil_for_another(tmp_path):
    def unwanted():
        raise AssertionError("it was made before")

    Shared(tmp_path).object("numbers", lambda: [1, 2]).append(3)
    assert Shared(tmp_path).object("numbers", unwanted) == [1, 2]


def test_who_writes_to_what_is_shared_is_found_out(tmp_path):
    shared = Shared(tmp_path)
    folder = shared.folder("a", write("as made"))
    assert shared.altered() == []
    (folder / "more.txt").write_text("")
    assert shared.altered() == ["a/more.txt"]
    (folder / "file.txt").write_text("changed")
    assert shared.altered() == ["a/file.txt", "a/more.txt"]
    (folder / "more.txt").unlink()
    (folder / "file.txt").unlink()
    assert shared.altered() == ["a/file.txt"]


def test_one_folder_serves_the_run(request, tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    run = base.parent if hasattr(request.config, "workerinput") else base
    folder = Shared.of_run(tmp_path_factory).folder("test-shared", write(""))
    assert folder == run / "shared" / "test-shared"
