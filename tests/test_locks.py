from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from cytomil import locks
from cytomil.errors import CytomilError, FolderInUseError
from cytomil.locks import output_folder

HOLD = """
import sys
from pathlib import Path
from cytomil.locks import output_folder
with output_folder(Path(sys.argv[1]), print, replaced=True):
    print("held", flush=True)
    sys.stdin.read()
"""


def ignore(message: str) -> None:
    """Stands for a screen nobody looks at."""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds tmp_path/out until its standard input is closed."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


class TestTwoProcesses:
    def test_second_is_told_who_holds_the_folder(self, tmp_path, holder):
        told = []
        found = rf"out is being written by process {holder.pid} on {platform.node()} since 20.* another output folder"
        with (
            pytest.raises(FolderInUseError, match=found),
            output_folder(tmp_path / "out", told.append, replaced=True, patience_s=0.1),
        ):
            pass
        assert len(told) == 1
        assert "waiting" in told[0]

    def test_second_goes_on_when_the_first_ends(self, tmp_path, holder):
        def end_it(_: str) -> None:
            holder.stdin.close()

        with output_folder(tmp_path / "out", end_it, replaced=True, patience_s=30):
            holder.wait()
            assert str(os.getpid()) in (tmp_path / ".out.lock").read_text()
        assert not (tmp_path / ".out.lock").exists()

    def test_killed_one_holds_nothing(self, tmp_path, holder):
        holder.kill()
        holder.wait()
        told = []
        with output_folder(tmp_path / "out", told.append, replaced=True, patience_s=0):
            pass
        assert told == []

    def test_link_to_the_same_folder_is_the_same_folder(self, tmp_path, holder):
        (tmp_path / "out").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "out")
        with (
            pytest.raises(FolderInUseError),
            output_folder(tmp_path / "link", ignore, replaced=True, patience_s=0),
        ):
            pass

    def test_other_folders_are_free(self, tmp_path, holder):
        with output_folder(tmp_path / "other", ignore, replaced=True, patience_s=0):
            pass


class TestOneProcess:
    def test_nested_use_goes_on(self, tmp_path):
        with output_folder(tmp_path / "out", ignore, replaced=True):
            with output_folder(tmp_path / "out", ignore, replaced=True, patience_s=0):
                pass
            assert (tmp_path / ".out.lock").exists()

    def test_nothing_is_left(self, tmp_path):
        path = tmp_path / "a" / "b" / "out"
        with pytest.raises(ZeroDivisionError), output_folder(path, ignore, replaced=True):
            raise ZeroDivisionError
        assert list(tmp_path.iterdir()) == []

    def test_file_system_without_locks_is_noted_and_used(self, tmp_path, monkeypatch):
        class NoLocks(locks.FileLock):
            def _acquire(self) -> None:
                raise OSError(37, "No locks available")

        monkeypatch.setattr(locks, "FileLock", NoLocks)
        told = []
        with output_folder(tmp_path / "out", told.append, replaced=True):
            pass
        assert "cannot be locked (No locks available)" in told[0]


class TestUnwritable:
    @pytest.fixture
    def read_only(self, monkeypatch):
        """Return a function that makes a folder read-only, even for root."""
        genuine = locks.tempfile.TemporaryFile

        def make(folder: Path) -> None:
            def refuse(**options):
                if Path(options["dir"]) == folder:
                    raise OSError(30, "Read-only file system")
                return genuine(**options)

            monkeypatch.setattr(locks.tempfile, "TemporaryFile", refuse)

        return make

    @pytest.mark.parametrize(("replaced", "exists"), [(True, True), (True, False), (False, False)])
    def test_parent_is_found_before_the_work(self, tmp_path, read_only, replaced, exists):
        if exists:
            (tmp_path / "out").mkdir()
        read_only(tmp_path)
        with (
            pytest.raises(CytomilError, match=f"{tmp_path.name} cannot be written .Read-only file system"),
            output_folder(tmp_path / "out", ignore, replaced=replaced),
        ):
            pytest.fail("the work began")

    @pytest.mark.parametrize("replaced", [True, False])
    def test_folder_itself_is_found_before_the_work(self, tmp_path, read_only, replaced):
        (tmp_path / "out").mkdir()
        read_only(tmp_path / "out")
        with (
            pytest.raises(CytomilError, match="out cannot be written"),
            output_folder(tmp_path / "out", ignore, replaced=replaced),
        ):
            pytest.fail("the work began")

    def test_only_the_folder_is_written_where_it_is_not_replaced(self, tmp_path, read_only):
        (tmp_path / "out").mkdir()
        read_only(tmp_path)
        with output_folder(tmp_path / "out", ignore, replaced=False):
            pass

    def test_parent_that_is_a_file_is_named(self, tmp_path):
        (tmp_path / "file").touch()
        with (
            pytest.raises(CytomilError, match="file cannot be written"),
            output_folder(tmp_path / "file" / "out", ignore, replaced=False),
        ):
            pytest.fail("the work began")

    def test_full_disk_is_named_with_its_cure(self, tmp_path, monkeypatch):
        def refuse(**_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(locks.tempfile, "TemporaryFile", refuse)
        with (
            pytest.raises(
                CytomilError, match=r"cannot be written \(No space left on device\)\. Free space on its disk"
            ),
            output_folder(tmp_path / "out", ignore, replaced=True),
        ):
            pytest.fail("the work began")
