from __future__ import annotations

import os

import pytest

from cytomil.bags.images import list_cell_files
from cytomil.litter import mark_own


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def found(folder):
    return [file.relative_to(folder).as_posix() for file in list_cell_files(folder).files]


def left_out(folder):
    return {problem.where: problem.reason for problem in list_cell_files(folder).left_out}


def test_every_file_may_be_a_cell_whatever_its_name(tmp_path):
    names = ["b.PNG", "a/x.jpg", "a/deep/er/y.jpeg", "c.webp", "d.jfif", "e.png.part", "f", "g.gif", "h.heic"]
    touch(tmp_path, *names)
    assert found(tmp_path) == sorted(names, key=lambda name: name.split("/"))
    assert left_out(tmp_path) == {}


def test_litter_and_notes_are_no_cells_at_any_depth(tmp_path):
    touch(tmp_path, "a.png", "x/b.png")
    touch(
        tmp_path,
        *(".hidden.png", "x/._b.png", "Thumbs.db", "x/desktop.ini", "x/.ipynb_checkpoints/b-checkpoint.png"),
        *("@eaDir/a.png/SYNOFILE_THUMB_M.jpg", "__MACOSX/x/a.png", "x/#recycle/a.png", "notes.txt", "x/~$t.xlsx"),
    )
    assert found(tmp_path) == ["a.png", "x/b.png"]
    assert left_out(tmp_path) == {}


def test_linked_folders_are_followed_and_loops_are_not(tmp_path):
    touch(tmp_path, "slide/a.png", "elsewhere/b.png", "elsewhere/c.png")
    (tmp_path / "slide" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "slide" / "d.png").symlink_to(tmp_path / "elsewhere" / "c.png")
    (tmp_path / "slide" / "loop").symlink_to(tmp_path / "slide")
    (tmp_path / "slide" / "above").symlink_to(tmp_path)
    assert found(tmp_path / "slide") == ["a.png", "d.png", "more/b.png", "more/c.png"]


def test_what_cannot_be_a_cell_is_listed(tmp_path):
    touch(tmp_path, "a.png", "scan.svs", "x/bag.h5")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert found(tmp_path) == ["a.png"]
    reasons = left_out(tmp_path)
    assert sorted(reasons) == ["gone.png", "pipe.png", "scan.svs", "x/bag.h5"]
    assert "a link to a file that does not exist" in reasons["gone.png"]
    assert "whole slide" in reasons["scan.svs"]


def test_a_folder_that_cannot_be_listed_is_listed(tmp_path, monkeypatch):
    touch(tmp_path, "a.png", "closed/b.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert found(tmp_path) == ["a.png"]
    assert "no permission" in left_out(tmp_path)["closed"]


def test_own_output_is_no_cell(tmp_path):
    touch(tmp_path, "a.png", "out/heatmaps/b.png")
    mark_own(tmp_path / "out")
    assert found(tmp_path) == ["a.png"]


def test_why_there_is_none(tmp_path):
    assert "no cell images" in list_cell_files(tmp_path).why_none()
    touch(tmp_path, "a.svs", "b.svs")
    assert "a.svs is a whole slide" in list_cell_files(tmp_path).why_none()


@pytest.mark.parametrize("name", [b"Zelle-\xfc.png", "=SUM(1+1).png", "a\x1b[31m.png"])
def test_names_of_any_kind(tmp_path, name):
    (tmp_path / os.fsdecode(name)).write_bytes(b"x")
    assert len(list_cell_files(tmp_path).files) == 1
