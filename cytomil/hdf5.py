"""HDF5 files with a checksum before their content, so that a damaged one never reaches the HDF5 library.

A few flipped bytes can make that library loop for ever, ask for all of memory or crash the process, and none of it can be
caught. So each file begins with a block, which HDF5 and every reader of it passes over, that holds the SHA-256 of the rest.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import h5py

from cytomil.errors import CytomilError, why_unreadable

# What h5py raises for a file that is laid out in another way.
HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError)
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SEAL_BYTES = 512  # HDF5's smallest user block
_SEAL = b"cytomil sha256 %s\n"


@contextmanager
def writing_hdf5(path: Path) -> Iterator[h5py.File]:
    """Create ``path``; when the body is done, its checksum is put before it."""
    with h5py.File(path, "w", userblock_size=SEAL_BYTES) as file:
        yield file
    seal_hdf5(path)


def seal_hdf5(path: Path) -> None:
    """Put the checksum of an HDF5 file that has a user block into that block."""
    seal = _SEAL % _sha256_of_rest(path).encode()
    with path.open("r+b") as file:
        file.write(seal.ljust(SEAL_BYTES, b"\0"))


@contextmanager
def reading_hdf5(path: Path, error: type[CytomilError], what: str, verb: str) -> Iterator[h5py.File]:
    """Open ``path`` for reading once its checksum has been verified; whatever is wrong, in the body too, is one ``error``.

    ``what`` such files are, and the ``verb`` that makes them, is what the line says.
    """
    if not path.is_file():
        raise error(f"{path} does not exist. Make {what} with `cytomil {verb}`.")
    again = f"Make it again with `cytomil {verb}`."
    try:
        if _is_locked(path):
            raise error(f"{path} is in use by another program. Wait until that has finished, and run this again.")
        state = path.stat()
        fault = _fault_of_seal(path, state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
    except OSError as problem:
        raise error(f"{path}: {why_unreadable(path, problem)}") from None
    if fault:
        raise error(f"{path} {fault}. {again}")
    try:
        # Finished files are never written again, so there is nothing to lock, and some file systems have no locks.
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except HDF5_ERRORS as problem:
        raise error(f"{path} does not hold what it should ({problem}). {again}") from None


def _is_locked(path: Path) -> bool:
    """Whether another program holds the file open to write in it, as HDF5 tells others; False where nobody can know."""
    if fcntl is None:
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            return False
    return False


@lru_cache(maxsize=4096)
def _fault_of_seal(path: Path, *state: int) -> str:
    """What is wrong with a file of this identity, size and time; "" where its checksum is right."""
    with path.open("rb") as file:
        head = file.read(SEAL_BYTES)
    if len(head) < SEAL_BYTES or not head.startswith(_SEAL.split(b"%", 1)[0]):
        if head.startswith(b"\x89HDF"):
            return "has no checksum: an earlier version of cytomil made it, or another program"
        return "is damaged or not a file of cytomil's"
    if head != (_SEAL % _sha256_of_rest(path).encode()).ljust(SEAL_BYTES, b"\0"):
        return "is truncated or damaged: its content is not what its checksum says"
    return ""


def _sha256_of_rest(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(SEAL_BYTES, os.SEEK_SET)
        return hashlib.file_digest(file, "sha256").hexdigest()
