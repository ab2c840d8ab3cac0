"""The checksum before an HDF5 file's content: no damaged file reaches the HDF5 library, and other readers pass it over."""

import subprocess
import sys

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytomil.errors import BagFileError
from cytomil.hdf5 import SEAL_BYTES, reading_hdf5, writing_hdf5


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("hdf5") / "a.h5"
    with writing_hdf5(path) as file:
        file["numbers"] = np.arange(100)
    return path


def read(path):
    with reading_hdf5(path, BagFileError, "bags", "make-bags") as file:
        return file["numbers"][:]


def test_what_was_written_is_read(whole):
    assert (read(whole) == np.arange(100)).all()
    with h5py.File(whole) as file:
        assert (file["numbers"][:] == np.arange(100)).all()


@given(st.data())
def test_any_changed_byte_is_told_and_never_opened(whole, tmp_path_factory, data):
    content = bytearray(whole.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("changed") / "a.h5"
    path.write_bytes(content)
    with pytest.raises(BagFileError, match=r"a\.h5 is (truncated or )?damaged"):
        read(path)


@pytest.mark.parametrize("n", [0, 1, 100, SEAL_BYTES, SEAL_BYTES + 1, -1])
def test_a_file_cut_off_is_told(whole, tmp_path, n):
    path = tmp_path / "a.h5"
    path.write_bytes(whole.read_bytes()[:n])
    with pytest.raises(BagFileError, match=r"a\.h5 is .*damaged"):
        read(path)


def test_bytes_added_at_the_end_are_told(whole, tmp_path):
    path = tmp_path / "a.h5"
    path.write_bytes(whole.read_bytes() + b"\0")
    with pytest.raises(BagFileError, match="is truncated or damaged"):
        read(path)


def test_an_hdf5_file_without_a_checksum_is_named_as_such(tmp_path):
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["numbers"] = [1]
    with pytest.raises(BagFileError, match=r"b\.h5 has no checksum: an earlier version .* `cytomil make-bags`"):
        read(tmp_path / "b.h5")


def test_a_file_changed_after_it_was_read_is_looked_at_again(whole, tmp_path):
    path = tmp_path / "a.h5"
    path.write_bytes(whole.read_bytes())
    read(path)
    path.write_bytes(whole.read_bytes()[:-1])
    with pytest.raises(BagFileError, match="truncated or damaged"):
        read(path)


def test_a_file_that_another_program_writes_is_told_as_one(tmp_path):
    path = tmp_path / "a.h5"
    code = f"import h5py, sys\nfile = h5py.File({str(path)!r}, 'w')\nprint('open', flush=True)\nsys.stdin.read()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"open\n"
        with pytest.raises(BagFileError, match=r"a\.h5 is in use by another program") as error:
            read(path)
    assert "damaged" not in str(error.value)


def test_no_permission_is_told(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.h5").touch()
    monkeypatch.setattr(type(tmp_path), "open", refuse)
    with pytest.raises(BagFileError, match=r"a\.h5: no permission to read it"):
        read(tmp_path / "a.h5")
