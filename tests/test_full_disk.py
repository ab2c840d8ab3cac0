import errno
import resource
from contextlib import contextmanager

import h5py
import numpy as np
import pytest

from cytomil.files import replacing, replacing_folder, write_json
from cytomil.full_disk import EnduringFile, enduring, is_full, naming_full_disk, require_free
from cytomil.hdf5 import writing_hdf5


@contextmanager
def largest_file(n_bytes):
    """No file of this process can become larger: the system refuses it as it refuses a write to a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestEnduringFile:
    def test_what_fits_is_written_and_read(self, tmp_path):
        with enduring(tmp_path / "f") as file:
            assert file.write(b"abcdef") == 6
            file.seek(2)
            file.write(np.array([1], np.uint8))
            file.truncate(5)
            file.seek(0)
            assert file.read() == b"ab\x01de"

    def test_first_error_is_raised_at_the_end(self, tmp_path):
        with pytest.raises(OSError) as full, largest_file(1000), enduring(tmp_path / "f") as file:
            assert file.write(bytes(600)) == 600
            assert file.write(bytes(600)) == 600
            assert file.write(bytes(600)) == 600
            assert file.truncate(5000) == 5000
        assert is_full(full.value)
        assert (tmp_path / "f").stat().st_size == 1000

    def test_is_raised_when_asked(self, tmp_path):
        with EnduringFile(tmp_path / "f") as file, largest_file(1000):
            file.require_written()
            file.write(bytes(2000))
            with pytest.raises(OSError, match="File too large"):
                file.require_written()

    def test_replaces_the_error_that_a_library_raises_because_of_it(self, tmp_path):
        with pytest.raises(OSError, match="File too large"), largest_file(10), enduring(tmp_path / "f") as file:
            file.write(bytes(20))
            raise RuntimeError("unexpected pos 64 vs 8")

    def test_other_errors_pass(self, tmp_path):
        with pytest.raises(ZeroDivisionError), enduring(tmp_path / "f"):
            raise ZeroDivisionError


def write_words(path):
    with writing_hdf5(path) as (file, require_written):
        values = file.create_dataset("values", (0, 128), np.float64, maxshape=(None, 128), chunks=(8, 128))
        words = file.create_dataset("words", (0,), h5py.string_dtype(), maxshape=(None,))
        for n in range(0, 1024, 64):
            values.resize(n + 64, axis=0)
            words.resize(n + 64, axis=0)
            values[n:] = np.random.default_rng(n).normal(size=(64, 128))
            words[n:] = [f"word {i}" for i in range(64)]
            require_written()


@pytest.mark.parametrize("limit", [600, 5_000, 100_000, 900_000])
def test_hdf5_ends_with_the_error_and_leaves_nothing(tmp_path, limit, capfd):
    path = tmp_path / "bag.h5"
    with pytest.raises(OSError) as full, largest_file(limit), replacing(path) as partial:
        write_words(partial)
    assert full.value.errno == errno.EFBIG
    assert full.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""


def test_error_names_the_final_file_or_folder(tmp_path):
    with pytest.raises(OSError) as full, largest_file(10):
        write_json(tmp_path / "a" / "card.json", {"long": "x" * 100})
    assert full.value.filename == str(tmp_path / "a" / "card.json")
    with pytest.raises(OSError) as full, replacing_folder(tmp_path / "out") as folder, largest_file(10):
        write_json(folder / "card.json", {"long": "x" * 100})
    assert full.value.filename == str(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_other_errors_keep_their_names(tmp_path):
    with pytest.raises(FileNotFoundError) as missing, naming_full_disk(tmp_path / "out"):
        (tmp_path / "missing").read_text()
    assert missing.value.filename == str(tmp_path / "missing")


def test_free_space_is_required(tmp_path):
    require_free(tmp_path, 1)
    with pytest.raises(OSError) as full:
        require_free(tmp_path, 1 << 60)
    assert is_full(full.value)
    assert full.value.filename == str(tmp_path)
