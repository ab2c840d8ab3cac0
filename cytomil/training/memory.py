"""Check memory and disk space before the cells are decoded, and keep freed memory in the process."""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path

import psutil

from cytomil.errors import SettingsError
from cytomil.progress import Listener, Memory, require_disk_space

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h


def require_memory(needed: int, what: str, processes: int, listener: Listener) -> None:
    """Report how much memory the cells (``what``) take. Raises `SettingsError` if too little is available.

    Each of the ``processes`` on this machine holds all ``needed`` bytes.
    """
    each = f" in each of {processes} processes" if processes > 1 else ""
    listener.note(f"{what}: {needed / 1e6:,.0f} MB of memory{each}")
    available = psutil.virtual_memory().available
    if needed * processes > 0.8 * available:
        raise SettingsError(
            f"{what} need {needed * processes / 1e9:.1f} GB of memory, but {available / 1e9:.1f} GB are free. "
            "Use --cache disk, lower --image-size or make fewer bags."
        )


def require_disk(needed: int, what: str, path: Path, listener: Listener) -> None:
    """Report how much space the cells (``what``) take in the file ``path``. Raises `SettingsError` if there is less."""
    listener.note(f"{what}: {needed / 1e6:,.0f} MB on disk, in {path}")
    require_disk_space(needed, what, path.parent, "Lower --image-size, make fewer bags")


def measured_memory(processes: int) -> Memory:
    """The peak memory of ``processes`` processes, each assumed to equal this one's peak, and the free memory."""
    if sys.platform == "win32":
        held = psutil.Process().memory_info().peak_wset
    else:
        import resource

        # macOS reports bytes, Linux KiB.
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Memory(held * processes, psutil.virtual_memory().available)


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for the next step. Only glibc is affected.

    By default glibc returns blocks of 32 MB and more to the system at once. Every step then faults in their pages
    again, which takes a tenth to a quarter of a step at 64 and 224 pixels.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)
