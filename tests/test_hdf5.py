from __future__ import annotations

import subprocess
import sys

import h5py
import pytest

from cytomil.errors import BagFileError
from cytomil.hdf5 import reading_hdf5


def read(path):
    with reading_hdf5(path, BagFileError, "bags", "make-bags") as file:
        return list(file)


def test_a_file_that_another_program_writes_is_told_as_one(tmp_path):
    path = tmp_path / "a.h5"
    code = f"import h5py, sys\nfile = h5py.File({str(path)!r}, 'w')\nprint('open', flush=True)\nsys.stdin.read()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"open\n"
        with pytest.raises(BagFileError, match=r"a\.h5 is in use by another program") as error:
            read(path)
    assert "damaged" not in str(error.value)
    assert read(path) == []


def test_no_permission_is_told(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.h5").touch()
    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(BagFileError, match=r"a\.h5: no permission to read it"):
        read(tmp_path / "a.h5")
