"""Files altered on purpose, with a checksum that fits again: what the checks behind the checksum say of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from cytomil.hdf5 import seal_hdf5


@contextmanager
def altering(path: Path) -> Iterator[h5py.File]:
    """Open a sealed HDF5 file for writing and seal it anew."""
    with h5py.File(path, "r+") as file:
        yield file
    seal_hdf5(path)
