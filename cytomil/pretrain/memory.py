"""Memory and disk space: what the decoded cells will take, told before it is taken; what training keeps."""

from __future__ import annotations

import ctypes
import platform
import shutil
from pathlib import Path

import psutil

from cytomil.errors import SettingsError
from cytomil.progress import Listener

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h


def require_memory(needed: int, what: str, processes: int, listener: Listener) -> None:
    """Say how much memory the cells (``what``) take; raise `SettingsError` if the machine has not that much to give.

    Each of the machine's ``processes`` holds all ``needed`` bytes.
    """
    each = f" in each of {processes} processes" if processes > 1 else ""
    listener.note(f"{what}: {needed / 1e6:,.0f} MB of memory{each}")
    available = psutil.virtual_memory().available
    if needed * processes > 0.8 * available:
        raise SettingsError(
            f"{what} need {needed * processes / 1e9:.1f} GB of memory; {available / 1e9:.1f} GB are free. "
            "Use --cache disk, lower --image-size or make fewer bags."
        )


def require_disk(needed: int, what: str, path: Path, listener: Listener) -> None:
    """Say how much space the cells (``what``) take in the file ``path``; raise `SettingsError` if there is less."""
    listener.note(f"{what}: {needed / 1e6:,.0f} MB on disk, in {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if needed > 0.95 * free:
        raise SettingsError(
            f"{what} need {needed / 1e9:.1f} GB of disk; {free / 1e9:.1f} GB are free at {path.parent}. "
            "Lower --image-size, make fewer bags, or name another disk with --out."
        )


def keep_freed_memory() -> None:
    """Let this process keep the memory it frees, for its next step.

    By default glibc gives blocks of 32 MB and more back to the system at once, and every step pays anew for each of their
    pages: a tenth to a quarter of a step at 64 and 224 pixels. Elsewhere nothing changes.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)
