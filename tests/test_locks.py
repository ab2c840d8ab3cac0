from __future__ import annotations

import os
import platform
import shlex
import shutil
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


HOLD_ON_OTHER_HOST = (
    """
import platform
platform.node = lambda: "hostb"
from cytomil import locks
locks._machine = lambda: "another-kernel"
"""
    + HOLD
)


class TestTwoHosts:
    """Another host is a process whose host name and kernel are replaced. Its lock is seen here, as on NFS 4, or is not."""

    @pytest.fixture
    def other_host(self, tmp_path):
        command = [sys.executable, "-c", HOLD_ON_OTHER_HOST, str(tmp_path / "out")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "held\n"
            yield process
            process.kill()

    @staticmethod
    def refused(path: Path) -> str:
        with (
            pytest.raises(FolderInUseError) as refused,
            output_folder(path, ignore, replaced=True, patience_s=0.1),
        ):
            pytest.fail("the work began")
        assert "\n" not in str(refused.value)
        return str(refused.value)

    def test_the_second_is_told_which_host_writes_and_since_when(self, tmp_path, other_host):
        said = self.refused(tmp_path / "out")
        assert f"is being written by process {other_host.pid} on hostb since 20" in said
        assert "another-kernel" not in said

    def test_a_host_whose_lock_is_not_seen_here_keeps_its_folder(self, tmp_path, other_host, monkeypatch):
        # A file system that keeps locks on one host: here the lock is free, but the file is the other one's.
        monkeypatch.setattr("fcntl.flock", lambda *_: None)
        assert f"process {other_host.pid} on hostb since 20" in self.refused(tmp_path / "out")
        held = (tmp_path / ".out.lock").read_text()
        assert held.startswith(f"process {other_host.pid} on hostb since 20")

    def test_what_a_killed_process_of_another_host_left_is_never_taken(self, tmp_path, other_host):
        other_host.kill()
        other_host.wait()
        os.utime(tmp_path / ".out.lock", (1, 1))  # age says nothing: a host without its network writes later
        for _ in range(2):
            said = self.refused(tmp_path / "out")
            assert f"process {other_host.pid} on hostb since 20" in said
            assert f"If that has ended or was killed, delete {tmp_path / '.out.lock'}" in said
        (tmp_path / ".out.lock").unlink()
        with output_folder(tmp_path / "out", pytest.fail, replaced=True):
            pass

    def test_the_other_host_ends_in_peace(self, tmp_path, other_host):
        other_host.communicate()
        with output_folder(tmp_path / "out", pytest.fail, replaced=True):
            pass

    def test_a_restarted_machine_goes_on(self, tmp_path, other_host, monkeypatch):
        other_host.kill()
        other_host.wait()
        monkeypatch.setattr(platform, "node", lambda: "hostb")
        with output_folder(tmp_path / "out", pytest.fail, replaced=True):
            pass

    @pytest.mark.skipif(shutil.which("unshare") is None or os.geteuid() != 0, reason="needs root, to name a host")
    def test_a_killed_container_of_this_machine_holds_nothing(self, tmp_path):
        held = shlex.join([sys.executable, "-c", HOLD, str(tmp_path / "out")])
        command = ["unshare", "--uts", "sh", "-c", f"hostname container-1 && exec {held}"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            if process.stdout.readline() != "held\n":
                pytest.skip("this user cannot name a host")
            said = self.refused(tmp_path / "out")
            process.kill()
        assert f"process {process.pid} on container-1 since 20" in said
        with output_folder(tmp_path / "out", pytest.fail, replaced=True):
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
