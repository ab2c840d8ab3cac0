"""Opening HDF5 files that may be truncated, damaged or no HDF5 at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from cytomil.errors import CytomilError, why_unreadable

# What h5py raises for a file that is truncated, damaged or laid out in another way.
HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError)


@contextmanager
def reading_hdf5(path: Path, error: type[CytomilError], what: str, verb: str) -> Iterator[h5py.File]:
    """Open ``path`` for reading; whatever h5py cannot make sense of, then or in the body, becomes one line of ``error``.

    ``what`` such files are, and the ``verb`` that makes them, is what the line says.
    """
    if not path.is_file():
        raise error(f"{path} does not exist. Make {what} with `cytomil {verb}`.")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except PermissionError as problem:
        raise error(f"{path}: {why_unreadable(path, problem)}") from None
    except HDF5_ERRORS as problem:
        if isinstance(problem, BlockingIOError) or "unable to lock file" in str(problem):
            raise error(
                f"{path} is in use by another program. Wait until that has finished; where no program uses it, its disk "
                "cannot lock files: put HDF5_USE_FILE_LOCKING=FALSE before the command."
            ) from None
        raise error(
            f"{path} is truncated, damaged or not an HDF5 file ({problem}). Make it again with `cytomil {verb}`."
        ) from None
