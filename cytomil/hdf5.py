"""HDF5 files with a checksum before their content, so that a damaged one never reaches the HDF5 library.

A few flipped bytes can make that library loop for ever, request all memory or crash the process. None of this can be
caught. Each file therefore begins with a block that holds the SHA-256 of the rest. HDF5 and all its readers skip this
block. Whoever makes a file to do harm can also write a fitting checksum, so `cytomil.workers.apart` reads files of
unknown origin in another process first.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from cytomil.errors import CytomilError, why_unreadable
from cytomil.files import sha256_of_file
from cytomil.full_disk import enduring
from cytomil.limits import progress

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SEAL_BYTES = 512  # HDF5's smallest user block
_SEAL = b"cytomil sha256 %s\n"
_REMEMBERED = 4096  # files
_ROWS_AT_ONCE = 1024
_BYTES_AT_ONCE = 16 << 20
_BYTES_PER_S = 5e6  # reading takes a tenth of the time that this allows

_written: deque[tuple[int, ...]] = deque(maxlen=_REMEMBERED)


def state_of(path: Path) -> tuple[int, ...]:
    """Changes when the content of the file may have changed. Raises OSError if the file cannot be found."""
    state = path.stat()
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


@contextmanager
def writing_hdf5(path: Path) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """Create ``path``. When the body is done, the checksum is written before the content.

    Yields the file, and a function that raises `OSError` if it could not be written so far. Call it after each block.
    """
    with enduring(path) as content, h5py.File(content, "w", userblock_size=SEAL_BYTES) as file:
        yield file, content.require_written
    seal_hdf5(path)
    _written.append(state_of(path))


def was_written_here(path: Path) -> bool:
    """Whether this process wrote the file itself, lately, and nobody has changed it since. It may have another name now."""
    return state_of(path) in _written


def seal_hdf5(path: Path) -> None:
    """Put the checksum of an HDF5 file that has a user block into that block."""
    seal = _SEAL % sha256_of_file(path, SEAL_BYTES).encode()
    with path.open("r+b") as file:
        file.write(seal.ljust(SEAL_BYTES, b"\0"))


def require_sealed(path: Path, error: type[CytomilError], cure: str) -> None:
    """Raise ``error`` unless the checksum before the content is right. ``cure`` ends the message."""
    try:
        if _is_locked(path):
            raise error(f"{path} is in use by another program. Wait until that has finished, and run this again.")
        fault = _fault_of_seal(path, *state_of(path))
    except OSError as problem:
        raise error(f"{path}: {why_unreadable(path, problem)}") from None
    if fault:
        raise error(f"{path} {fault}. {cure}")


@contextmanager
def open_hdf5(path: Path, error: type[CytomilError], cure: str) -> Iterator[Hdf5File]:
    """Open ``path`` for reading. Any fault of the file is raised as ``error``, and ``cure`` ends each message.

    The checksum is not verified, and a file made to do harm is not noticed: see `cytomil.workers.apart.reading_hdf5`.
    """
    try:
        # Finished files are never written again, so there is nothing to lock, and some file systems have no locks.
        opened = h5py.File(path, "r", locking=False)
    except (OSError, RuntimeError) as problem:
        raise error(f"{path} does not hold what it should ({problem}). {cure}") from None
    with opened:
        yield Hdf5File(opened, path, error, cure)


A = TypeVar("A", str, int, float)
T = TypeVar("T")
_ATTRIBUTES: dict[type, tuple[str, tuple[type, ...]]] = {
    str: ("text", (str,)),
    int: ("a whole number", (int, np.integer)),
    float: ("a number", (int, float, np.integer, np.floating)),
}
_KINDS: dict[str, Callable[[np.dtype], bool]] = {
    "text": lambda dtype: h5py.check_string_dtype(dtype) is not None,
    "bytes": lambda dtype: h5py.check_vlen_dtype(dtype) == np.uint8,
    "whole numbers": lambda dtype: dtype.kind in "iu",
    "numbers": lambda dtype: dtype.kind in "iuf",
}
# What h5py raises for a damaged file or another layout. Only a single call of h5py may stand in such a `try`.
_H5PY_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError)


class Hdf5File:
    """An HDF5 file open for reading. Any fault of the file is raised as the error class that it was opened with.

    A mistake in the calling code is not converted: its exception propagates unchanged.
    """

    def __init__(self, file: h5py.File, path: Path, error: type[CytomilError], cure: str) -> None:
        self._file, self._path, self._error, self._cure = file, path, error, cure

    def refused(self, why: str) -> CytomilError:
        """The error for a reader to raise. ``why`` follows the file's name, as in "lacks coords"."""
        return self._error(f"{self._path} {why}. {self._cure}")

    def require_schema(self, schema: str, what: str) -> None:
        """Raise the error unless the attribute ``schema`` is this one; ``what`` such a file is."""
        found = self._call(lambda: self._file.attrs.get("schema", "none"))
        if not isinstance(found, str) or found != schema:
            shown = repr(found)[:60]
            raise self.refused(f"is not {what} of this version (schema {shown}, expected {schema!r})")

    def attribute(self, name: str, kind: type[A]) -> A:
        """A scalar attribute. Raises the error if it is missing or of another type."""
        value = self._attribute(name)
        expected, accepted = _ATTRIBUTES[kind]
        fits = isinstance(value, accepted)
        if not fits:
            raise self.refused(f"has the attribute {name} = {repr(value)[:60]}, which is not {expected}")
        return kind(value)

    def whole_numbers(self, name: str) -> tuple[int, ...]:
        """An attribute that is a list of whole numbers; () where it is missing."""
        if not self._call(lambda: name in self._file.attrs):
            return ()
        value = np.asarray(self._attribute(name))
        if value.ndim != 1 or (value.size and value.dtype.kind not in "iu"):
            raise self.refused(f"has the attribute {name} = {repr(value)[:60]}, which are not whole numbers")
        return tuple(int(number) for number in value)

    def dataset(self, name: str, kind: str, shape: tuple[int | None, ...]) -> Hdf5Dataset:
        """A dataset. Raises the error if it is missing, or of another kind or shape.

        Args:
            name: in the file.
            kind: "text", "bytes" (one encoded image per entry), "whole numbers" or "numbers".
            shape: None for an axis of any length.
        """
        found = self._own(name)
        has, dtype = self._call(lambda: found.shape), self._call(lambda: found.dtype)
        if has is None or len(has) != len(shape) or any(n not in (None, m) for n, m in zip(shape, has, strict=True)):
            announced = "" if shape[0] is None else f"{shape[0]} instances announced, "
            raise self.refused(f"is inconsistent: {announced}{name} has shape {has}")
        if not _KINDS[kind](dtype):
            raise self.refused(f"holds {dtype} as {name}, which are not {kind}")
        if not self._is_stored(found):
            raise self.refused(f"announces {has[0]} entries as {name}, but does not hold them")
        return Hdf5Dataset(found.asstr() if kind == "text" else found, found, self._call)

    def read_attributes(self, before_each: Callable[[], None]) -> None:
        """Read every attribute, for `read_all`. Raises the error if the list of attributes is damaged."""
        for name in self._call(lambda: list(self._file.attrs)):
            before_each()
            with suppress(self._error):
                self._attribute(name)

    def names(self) -> list[str]:
        """The names of all datasets, and of anything else in their place."""
        return self._call(lambda: list(self._file))

    def sizes_of_blocks(self, name: str) -> Iterator[int]:
        """Read a dataset in blocks, for `read_all`, and yield the number of bytes of each.

        The content of numbers in one piece is left out, because nothing in it is followed. Raises the error if the dataset
        is damaged, is elsewhere, or announces more than the file holds.
        """
        found = self._own(name)
        shape = self._call(lambda: found.shape)
        if not shape or not self._is_stored(found):
            return
        of_objects = self._call(lambda: found.dtype).kind == "O"
        width = found.dtype.itemsize * math.prod(shape[1:])
        rows = _ROWS_AT_ONCE if of_objects else max(1, _BYTES_AT_ONCE // max(1, width))
        if not of_objects and self._call(lambda: found.chunks) is None:
            return
        for start in range(0, shape[0], rows):
            block = self._call(partial(found.__getitem__, slice(start, start + rows)))
            yield sum(map(len, block.flat)) if of_objects else block.nbytes

    def _own(self, name: str) -> h5py.Dataset:
        link = self._call(lambda: self._file.get(name, getlink=True))
        if isinstance(link, h5py.ExternalLink | h5py.SoftLink):
            raise self.refused(f"takes {name} from elsewhere, which is not followed")
        found = self._call(lambda: self._file.get(name))
        if not isinstance(found, h5py.Dataset):
            raise self.refused(f"lacks {name}")
        if self._call(lambda: found.external or found.is_virtual):
            raise self.refused(f"takes {name} from other files, which is not followed")
        return found

    def _is_stored(self, found: h5py.Dataset) -> bool:
        """Whether the file holds as many bytes as the dataset announces. cytomil never compresses."""
        announced = self._call(lambda: math.prod(found.shape) * found.dtype.itemsize)
        return announced <= self._call(lambda: min(found.id.get_storage_size(), self._file.id.get_filesize()))

    def _attribute(self, name: str) -> Any:
        if not self._call(lambda: name in self._file.attrs):
            raise self.refused(f"lacks {name}")
        return self._call(lambda: self._file.attrs[name])

    def _call(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except _H5PY_ERRORS as problem:
            raise self.refused(f"does not hold what it should ({problem})") from None


def read_all(path: Path) -> str:
    """Read all that an `Hdf5File` could give, so that reading the same file later brings nothing new.

    Call it in a process with the limits of `cytomil.limits`. A part in which HDF5 notices damage is passed over, because
    whoever reads this part finds the same. Returns what is wrong with the file as a whole; "" if nothing is.
    """
    n_bytes = path.stat().st_size
    until = time.process_time() + n_bytes / _BYTES_PER_S

    def advance() -> None:
        if time.process_time() < until:
            progress()

    left = n_bytes
    with suppress(CytomilError), open_hdf5(path, CytomilError, "") as file:
        file.read_attributes(advance)
        for name in file.names():
            with suppress(CytomilError):
                for size in file.sizes_of_blocks(name):
                    advance()
                    left -= size
                    if left < 0:
                        return "its entries have more bytes than the file"
    return ""


class Hdf5Dataset:
    """A dataset of a known kind and shape. Reading raises the error of its file if the content is damaged."""

    def __init__(self, values: Any, dataset: h5py.Dataset, call: Callable[[Callable[[], Any]], Any]) -> None:
        self._values, self._dataset, self._call = values, dataset, call
        self.shape: tuple[int, ...] = dataset.shape
        self.dtype: np.dtype = dataset.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, start: int | None = None, stop: int | None = None) -> np.ndarray:
        """Entries ``start`` to ``stop`` along the first axis, in the file's own format; text as str."""
        values: np.ndarray = self._call(lambda: self._values[start:stop])
        return values

    @property
    def offset(self) -> int | None:
        """Where the content begins in the file, in bytes; None if it is stored in chunks or not written."""
        return self._call(self._dataset.id.get_offset)


def _is_locked(path: Path) -> bool:
    """Whether another program has the file open for writing, by HDF5's own lock; False if there are no locks."""
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


@lru_cache(maxsize=_REMEMBERED)
def _fault_of_seal(path: Path, *state: int) -> str:
    """What is wrong with a file of this identity, size and time; "" where its checksum is right."""
    with path.open("rb") as file:
        head = file.read(SEAL_BYTES)
    if len(head) < SEAL_BYTES or not head.startswith(_SEAL.split(b"%", 1)[0]):
        if head.startswith(b"\x89HDF"):
            return "has no checksum: an earlier version of cytomil made it, or another program"
        return "is damaged or not a file of cytomil's"
    if head != (_SEAL % sha256_of_file(path, SEAL_BYTES).encode()).ljust(SEAL_BYTES, b"\0"):
        return "is truncated or damaged: its content does not match its checksum"
    return ""
