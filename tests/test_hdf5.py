"""The checksum before an HDF5 file's content: no damaged file reaches the HDF5 library, and other readers pass it over."""

import subprocess
import sys

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytomil.errors import BagFileError
from cytomil.hdf5 import SEAL_BYTES, seal_hdf5, writing_hdf5
from cytomil.workers.apart import reading_hdf5


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("hdf5") / "a.h5"
    with writing_hdf5(path) as (file, _):
        file["numbers"] = np.arange(100)
    return path


def read(path):
    with reading_hdf5(path, BagFileError, "bags", "make-bags") as file:
        return file.dataset("numbers", "whole numbers", (None,)).read()


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


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    path = tmp_path_factory.mktemp("mixed") / "m.h5"
    with writing_hdf5(path) as (file, _):
        file["numbers"] = np.arange(6).reshape(3, 2)
        file["names"] = np.array(["ä", "b"], h5py.string_dtype("utf-8"))
        file.create_group("folder")
        file.attrs.update({"schema": "s/1", "n": 3, "share": 0.5, "word": "one", "list": np.array([1, 2])})
    return path


def reading(path):
    return reading_hdf5(path, BagFileError, "bags", "make-bags")


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda file: file.attribute("none", str), "lacks none"),
        (lambda file: file.attribute("word", int), "word = 'one', which is not a whole number"),
        (lambda file: file.attribute("share", int), "share = .*0.5.*, which is not a whole number"),
        (lambda file: file.attribute("n", str), "which is not text"),
        (lambda file: file.attribute("list", float), "which is not a number"),
        (lambda file: file.whole_numbers("word"), "which are not whole numbers"),
        (lambda file: file.dataset("none", "text", (2,)), "lacks none"),
        (lambda file: file.dataset("folder", "text", (2,)), "lacks folder"),
        (lambda file: file.dataset("numbers", "text", (3, 2)), "holds int64 as numbers, which are not text"),
        (lambda file: file.dataset("names", "bytes", (2,)), "which are not bytes"),
        (
            lambda file: file.dataset("names", "text", (3,)),
            r"is inconsistent: 3 instances announced, names has shape \(2,\)",
        ),
        (lambda file: file.dataset("numbers", "numbers", (3,)), r"is inconsistent.*numbers has shape \(3, 2\)"),
        (
            lambda file: file.require_schema("s/2", "a file"),
            "is not a file of this version .schema 's/1', expected 's/2'",
        ),
    ],
)
def test_what_a_file_lacks_is_one_line_that_names_it(mixed, ask, said):
    with pytest.raises(BagFileError, match=rf"m\.h5 .*{said}.*`cytomil make-bags`") as caught, reading(mixed) as file:
        ask(file)
    assert "\n" not in str(caught.value)


def test_what_a_file_holds_is_given_with_its_type(mixed):
    with reading(mixed) as file:
        file.require_schema("s/1", "a file")
        found = [file.attribute("n", int), file.attribute("share", float), file.attribute("n", float)]
        assert [type(one) for one in found] == [int, float, float]
        assert (file.whole_numbers("list"), file.whole_numbers("none")) == ((1, 2), ())
        assert list(file.dataset("names", "text", (2,)).read()) == ["ä", "b"]
        assert file.dataset("numbers", "numbers", (None, 2)).read(1, 2).tolist() == [[2, 3]]


@pytest.mark.parametrize("mistake", [KeyError("x"), TypeError("x"), ValueError("x"), OSError("x"), RuntimeError("x")])
def test_a_mistake_in_the_code_that_reads_is_not_the_files_fault(mixed, mistake):
    with pytest.raises(type(mistake)) as caught, reading(mixed) as file:
        file.attribute("n", int)
        raise mistake
    assert caught.value is mistake


def test_damage_that_shows_only_on_reading_is_the_files_fault(tmp_path):
    path = tmp_path / "z.h5"
    with writing_hdf5(path) as (file, _):
        file.create_dataset("numbers", data=np.full(1000, 7), chunks=(1000,), fletcher32=True)
    content = bytearray(path.read_bytes())
    content[content.index(np.full(1000, 7).tobytes())] ^= 1  # which HDF5's own checksum of the chunk notices
    path.write_bytes(content)
    seal_hdf5(path)
    with pytest.raises(BagFileError, match=r"z\.h5 does not hold what it should"), reading(path) as file:
        file.dataset("numbers", "numbers", (1000,)).read()


@pytest.mark.parametrize("how", ["external link", "soft link", "external storage", "virtual"])
def test_content_of_another_file_is_never_read(tmp_path, how):
    secret, path = tmp_path / "secret", tmp_path / "a.h5"
    with h5py.File(secret, "w") as file:
        file["numbers"] = np.arange(100)
    with writing_hdf5(path) as (file, _):
        if how == "external link":
            file["numbers"] = h5py.ExternalLink(str(secret), "numbers")
        elif how == "soft link":
            file["numbers"] = h5py.SoftLink("/elsewhere")
        elif how == "external storage":
            file.create_dataset("numbers", (100,), "u1", external=[(str(secret), 0, 100)])
        else:
            layout = h5py.VirtualLayout((100,), "i8")
            layout[:] = h5py.VirtualSource(str(secret), "numbers", (100,))
            file.create_virtual_dataset("numbers", layout)
    with pytest.raises(BagFileError, match=r"takes numbers from .*which is not followed"):
        read(path)
