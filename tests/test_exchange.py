"""How `replacing_folder` puts the new folder in the place of the former one."""

import os
import shutil
import sys

import pytest

from cytomil import files
from cytomil.files import replacing_folder


@pytest.fixture
def former(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "former.txt").write_text("former")
    return tmp_path / "out"


def names_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the exchange of Linux")
def test_there_is_a_folder_at_every_moment(former, monkeypatch):
    inode = former.stat().st_ino
    renamed, removed = [], []
    monkeypatch.setattr(os, "rename", lambda *names: renamed.append(names))
    monkeypatch.setattr(
        shutil, "rmtree", lambda folder, **_: removed.append((folder.stat().st_ino, names_below(former)))
    )
    with replacing_folder(former) as partial:
        (partial / "new.txt").write_text("new")
    assert renamed == []
    assert removed == [(inode, ["new.txt"])]


def test_two_renames_where_the_system_cannot_exchange(former, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    with replacing_folder(former) as partial:
        (partial / "new.txt").write_text("new")
    assert names_below(tmp_path) == ["out", "out/new.txt"]


def test_an_exchange_that_the_system_refuses_changes_nothing(former, tmp_path):
    assert not files._exchange(former, tmp_path / "missing")
    assert names_below(tmp_path) == ["out", "out/former.txt"]
