"""The hash of what make-bags reads changes with any of it, and with nothing else."""

from __future__ import annotations

import os
import shutil

import pytest

from cytomil.bags import make as inputs
from cytomil.bags.config import MakeBagsConfig
from cytomil.bags.make import write_fingerprint
from cytomil.errors import NotFoundError
from cytomil.progress import Silent


@pytest.fixture
def root(tmp_path, make_slide_folders):
    make_slide_folders(tmp_path / "slides", ["s1", "s2"])
    for name, text in (("labels.csv", "slide,label\n"), ("mpp.csv", "slide,mpp\n"), ("people.csv", "image,patient\n")):
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def fingerprint(root):
    def run(**changes):
        chosen = {
            "source": str(root / "slides"),
            "labels": root / "labels.csv",
            "mpp_csv": root / "mpp.csv",
            "patients": str(root / "people.csv"),
            "out": root / "slides" / "bags",
        }
        write_fingerprint(root / "inputs.json", MakeBagsConfig(**(chosen | changes)), Silent())
        return (root / "inputs.json").read_bytes()

    return run


@pytest.mark.parametrize("name", ["labels.csv", "mpp.csv", "people.csv", "slides/s1/cell-0.png"])
def test_any_file_counts_even_where_size_and_time_are_kept(fingerprint, root, name):
    before = fingerprint()
    status = (root / name).stat()
    content = (root / name).read_bytes()
    (root / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(root / name, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fingerprint() != before
    (root / name).write_bytes(content)
    assert fingerprint() == before


def test_a_file_more_or_less_or_renamed_counts(fingerprint, root):
    before = fingerprint()
    cell = root / "slides" / "s1" / "cell-0.png"
    cell.rename(cell.with_name("other.png"))
    renamed = fingerprint()
    cell.with_name("other.png").unlink()
    assert len({before, renamed, fingerprint()}) == 3


def test_settings_count_wherever_they_come_from(fingerprint):
    assert fingerprint() != fingerprint(seed=1)


def test_where_the_work_is_done_does_not(fingerprint):
    assert fingerprint() == fingerprint(workers=2, ray_address="local")


def test_bags_hidden_files_and_touched_ones_do_not(fingerprint, root):
    before = fingerprint()
    (root / "slides" / "bags").mkdir()
    (root / "slides" / "bags" / "s1.h5").write_bytes(b"a bag")
    (root / "slides" / ".DS_Store").write_bytes(b"litter")
    os.utime(root / "slides" / "s1" / "cell-0.png", (1, 1))
    assert fingerprint() == before


def test_linked_folders_are_read_once_and_circles_end(fingerprint, root):
    shutil.move(root / "slides" / "s2", root / "elsewhere")
    before = fingerprint()
    (root / "slides" / "s2").symlink_to(root / "elsewhere")
    (root / "slides" / "s1" / "up").symlink_to(root / "slides")
    linked = fingerprint()
    assert linked != before
    next((root / "elsewhere").iterdir()).write_bytes(b"other")
    assert fingerprint() != linked


def test_what_has_not_changed_is_not_read_again(fingerprint, root, monkeypatch):
    monkeypatch.setattr(inputs, "_SETTLED_SECONDS", -1.0)
    read = []
    monkeypatch.setattr(inputs, "sha256_of_file", lambda path: read.append(path.name) or path.name)
    fingerprint()
    n = len(read)
    fingerprint()
    assert n == 11
    assert len(read) == n


def test_synthetic_cells_need_no_file(fingerprint):
    assert b'"files": 0' in fingerprint(source="synthetic", labels=None, mpp_csv=None, patients=None)


@pytest.mark.parametrize("change", [{"source": "/nowhere"}, {"labels": "/nowhere"}, {"mpp_csv": "/nowhere"}])
def test_what_is_not_there_is_said(fingerprint, change):
    with pytest.raises(NotFoundError, match="/nowhere"):
        fingerprint(**change)
