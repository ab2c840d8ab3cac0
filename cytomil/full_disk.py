"""Full disks: which errors report one, and writing for libraries that crash if a write fails."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def is_full(error: OSError) -> bool:
    """Whether ``error`` means that the disk or the quota is full, or the largest size of a file is reached."""
    return error.errno in _FULL


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Make the error of a full disk name ``path``. By itself it names a temporary file, a source or nothing."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def require_free(path: Path, needed: int) -> None:
    """Raise the error of a full disk if fewer than ``needed`` bytes are free on the disk of the folder ``path``."""
    if shutil.disk_usage(path).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


class EnduringFile(io.FileIO):
    """A file in which writing never fails. The first error is kept for `require_written`, and later writes do nothing.

    HDF5 and PyTorch cannot close a file whose writing failed: the process crashes, some with a dump on the screen.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self._error: OSError | None = None

    def require_written(self) -> None:
        """Raise the first error, if there was one."""
        if self._error is not None:
            raise self._error

    def write(self, content: Any) -> int:
        """Write all of ``content``. Returns its length in bytes, whether they were written or not."""
        rest = memoryview(content).cast("B")
        length = len(rest)
        while rest and self._error is None:
            try:
                rest = rest[super().write(rest) :]
            except OSError as error:
                self._error = error
        return length

    def truncate(self, size: int | None = None) -> int:
        """Set the length of the file, in bytes. Returns it, whether it was set or not."""
        size = self.tell() if size is None else size
        if self._error is None:
            try:
                super().truncate(size)
            except OSError as error:
                self._error = error
        return size


@contextmanager
def enduring(path: Path) -> Iterator[EnduringFile]:
    """Create ``path`` for a library to write. Raises the first `OSError` of a write once the library is done.

    It also replaces an error that the library raised because of it.
    """
    with EnduringFile(path) as file:
        try:
            yield file
        except Exception:
            file.require_written()
            raise
        file.require_written()
