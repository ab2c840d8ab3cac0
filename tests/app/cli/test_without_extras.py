"""Every command where none of the optional extras is installed, each in a process that cannot import them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .test_bad_input import EVERY_VERB, TRAIN, snapshot

pytestmark = pytest.mark.long

EXTRAS = ("dvc", "dvclive", "torchjd", "nncf", "ncnn", "pnnx", "ray", "cryptography", "torch_tensorrt")
HIDE = """
import sys
from importlib import metadata

sys.modules.update(dict.fromkeys(EXTRAS))
find = metadata.distribution

def distribution(name):
    if name.replace("-", "_") in EXTRAS:
        raise metadata.PackageNotFoundError(name)
    return find(name)

metadata.distribution = distribution
"""
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Start cytomil in a folder; neither it nor any process that it starts can import an extra."""
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(f"EXTRAS = {EXTRAS!r}\n{HIDE}")
    searched = os.pathsep.join([str(site), *filter(None, sys.path), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": searched, "OMP_NUM_THREADS": "1"}

    def start(folder: Path, *line: object, module: str = "cytomil") -> subprocess.Popen[str]:
        command = [sys.executable, "-m", module, *map(str, line)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=folder, env=environment, **pipes)

    return start


@pytest.fixture(scope="module")
def run(start):
    """Run cytomil to its end."""

    def run(folder: Path, *line: object, module: str = "cytomil") -> subprocess.CompletedProcess[str]:
        with start(folder, *line, module=module) as process:
            told = process.communicate()
        return subprocess.CompletedProcess(line, process.returncode, *told)

    return run


@pytest.fixture(scope="module")
def finished(run, shared, tmp_path_factory):
    """A copy of what all verbs made; some tests write to it."""

    def make(root: Path) -> None:
        for line in EVERY_VERB:
            done = run(root, *line)
            assert done.returncode == 0, done.stdout + done.stderr

    made = shared.folder("without-extras", make)
    return shutil.copytree(made, tmp_path_factory.mktemp("without") / "extras", symlinks=True)


@pytest.mark.parametrize(
    "line", [["verify", "."], ["verify", "triage"], ["doctor"], ["init", "new"], ["--help"], ["--version"]]
)
def test_what_needs_no_extra_runs(run, finished, line):
    done = run(finished, *line)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_extra_can_be_imported(run, tmp_path):
    lines = [f"try:\n    import {name}\n    print({name!r})\nexcept ImportError: pass" for name in EXTRAS]
    (tmp_path / "attempt.py").write_text("\n".join([*lines, "print('end')"]))
    assert run(tmp_path, module="attempt").stdout == "end\n"


def test_a_review_is_served(start, finished):
    with start(finished, "review", "triage", "--no-browser") as server:
        told = server.stderr.readline()
        server.terminate()
    assert "http://127.0.0.1" in told


@pytest.mark.parametrize(
    ("line", "extra"),
    [
        (["pretrain", *TRAIN, "--method", "slam-ags", "--surgery", "mgda"], "surgery"),
        (["embed", "--ray-address", "local"], "ray"),
        (["rank", "data/bags", "--ray-address", "local"], "ray"),
        (["rank", "data/bags", "--require-signature", "key.pem"], "signature"),
        (["compile", "--engine", "ncnn"], "ncnn"),
        (["compile", "--engine", "openvino", "--precision", "int8"], "int8"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:1]),
)
def test_what_needs_an_extra_names_it_in_one_line(run, finished, line, extra):
    before = outputs(finished)
    assert_names(run(finished, *line), extra)
    assert outputs(finished) == before


def test_make_bags_over_ray_names_it(run, tmp_path, make_slide_folders):
    make_slide_folders(tmp_path / "slides", ["s1", "s2", "s3", "s4"])
    (tmp_path / "labels.csv").write_text("slide,label,split\ns1,0,train\ns2,1,train\ns3,0,test\ns4,1,test\n")
    assert_names(run(tmp_path, "make-bags", "slides", "--labels", "labels.csv", "--ray-address", "local"), "ray")


def assert_names(done, extra):
    errors = [said for said in done.stderr.splitlines() if said.startswith("error: ")]
    assert done.returncode == 1, done.stdout + done.stderr
    assert len(errors) == 1 and f"cytomil[{extra}]" in errors[0], done.stderr
    assert "Traceback" not in done.stderr


def outputs(root):
    """All files, but for the mark of cytomil's folders."""
    return {path: time for path, time in snapshot(root).items() if path.name != ".cytomil"}
