"""Only one command at a time writes to an output folder, across all processes and hosts that see it.

The lock is the kernel's (flock). Some network file systems keep it on one host. The file of the lock therefore names
the holder. A process that finds another host in this file does not take the lock.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from cytomil.cards import now
from cytomil.errors import CytomilError, FolderInUseError
from cytomil.full_disk import is_full

PATIENCE_S = 5.0
"""Seconds that a command waits for another one to end."""

_SIGNATURE_BYTES = 400
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_held: set[Path] = set()


@contextmanager
def output_folder(
    path: Path, note: Callable[[str], None], *, replaced: bool, patience_s: float = PATIENCE_S
) -> Iterator[None]:
    """Hold the lock of the folder ``path`` while a command writes there. A process may hold the same lock several times.

    ``path`` may also be a file that is replaced whole.

    The lock is the file ``.NAME.lock`` beside the folder. The kernel releases it when the process dies, and the file is
    removed when the command ends. If the file system has no locks, ``note`` is called and the work goes on without one.
    If a process of another host was killed, its file must be removed by hand, because this host cannot know that the
    process has ended. With ``replaced`` the folder is replaced as a whole, so its parent folder must be writable too.

    Raises `CytomilError` if ``path`` cannot be written. Raises `FolderInUseError` if another process still holds the
    lock after ``patience_s`` seconds, or a process of another host may hold it.
    """
    path = path.resolve()
    if path in _held:
        yield
        return
    made = _make(path.parent)
    try:
        for folder in ([path] if path.is_dir() else []) + ([path.parent] if replaced or not path.exists() else []):
            _require_writable(folder)
        lock = _acquire(path, note, patience_s)
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)
            if lock is not None:
                # The file is removed while the lock is held. A waiting process sees that the file is gone, and makes a
                # new one.
                with suppress(OSError):
                    _lock_file(path).unlink()
                lock.release()
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()  # those that stayed empty


def _lock_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _make(folder: Path) -> list[Path]:
    """Make a folder; returns those that were not there before, the deepest first."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CytomilError(_unwritable(folder, error)) from None
    return missing


def _require_writable(folder: Path) -> None:
    """Try to write, because permissions do not show read-only disks, quotas and network drives."""
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".cytomil-"):
            pass
    except OSError as error:
        raise CytomilError(_unwritable(folder, error)) from None


def _unwritable(folder: Path, error: OSError) -> str:
    cure = "Free space on its disk" if is_full(error) else "Check its permissions"
    return f"{folder} cannot be written ({error.strerror or error}). {cure}, or name another output folder."


def _acquire(path: Path, note: Callable[[str], None], patience_s: float) -> FileLock | None:
    def sign(descriptor: int) -> None:
        host, machine = platform.node(), _machine()
        with suppress(OSError):
            left, left_on = _signature(os.pread(descriptor, _SIGNATURE_BYTES, 0))
            # A restart changes the machine's id, but all processes from before it have ended.
            if left_on not in ("", machine) and f" on {host} since " not in left:
                raise FolderInUseError(
                    f"{path} may still be written by {left}. If that has ended or was killed, delete {_lock_file(path)} "
                    "and start again. Otherwise wait, or name another output folder."
                )
        with suppress(OSError):  # a full disk; the lock holds without a name in it
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {host} since {now()}\n{machine}".encode(), 0)

    try:
        # Every user who may write beside the folder may take its lock, even if another user made the file.
        mode = path.parent.stat().st_mode & 0o666 | 0o600
        lock = FileLock(_lock_file(path), mode=mode, fallback_to_soft=False, on_acquired=sign)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            note(f"{path} is being written by {_holder(path)}; waiting up to {patience_s:.0f} s")
            lock.acquire(timeout=patience_s)
    except Timeout:
        raise FolderInUseError(
            f"{path} is being written by {_holder(path)}. Wait until that has ended, or name another output folder."
        ) from None
    except OSError as error:
        note(
            f"{path} cannot be locked ({error.strerror or error}): make sure that no other command writes there meanwhile."
        )
        return None
    return lock


def _holder(path: Path) -> str:
    try:
        return _signature(_lock_file(path).read_bytes()[:_SIGNATURE_BYTES])[0] or "another process"
    except OSError:
        return "another process"


def _signature(content: bytes) -> tuple[str, str]:
    """Who holds a lock, by the content of its file, and on which machine."""
    holder, _, machine = content.decode(errors="replace").partition("\n")
    return holder, machine


def _machine() -> str:
    """Names the running kernel. Containers of one machine have host names of their own, but share its locks."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return platform.node()
