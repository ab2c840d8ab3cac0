"""The feature cache: one bag's embeddings in HDF5, in a layout that the readers of TRIDENT and CLAM also accept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from cytomil.errors import FeatureFileError
from cytomil.files import replacing
from cytomil.hdf5 import Hdf5Dataset, Hdf5File, writing_hdf5
from cytomil.workers.apart import reading_hdf5

SCHEMA = "cytomil.features/1"
CHUNK_CELLS = 256  # measured: python -m bench hdf5
_CHUNK_ROWS = 1024
_BLOCK = 8192
# Measured bytes in addition to the arrays: the overhead of HDF5 per file, and the name of each cell.
_BYTES_PER_FILE = 15_000
_BYTES_PER_NAME = 36
_STRING = h5py.string_dtype("utf-8")


@dataclass(frozen=True)
class FeatureKey:
    """Identifies the input and the encoder of features. A cache with another key is replaced."""

    bag_sha256: str
    encoder_sha256: str
    layer: str
    transform_sha256: str
    engine: str
    dtype: str
    orientations: str


@dataclass(frozen=True)
class Features:
    """A validated cache of N cells and D features. Values per cell are read from the file at each call.

    ``groups`` are the numbers of columns that belong together, such as those of a stage. It is empty for a single group.
    """

    path: Path
    bag_id: str
    key: FeatureKey
    mpp: float | None
    shape: tuple[int, int]
    unreadable: tuple[str, ...]
    groups: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def instance_ids(self) -> tuple[str, ...]:
        """The cells' ids, (N,)."""
        with _reading(self.path) as file:
            return tuple(file.dataset("instance_id", "text", (len(self),)).read())

    @property
    def coords(self) -> np.ndarray:
        """The cells' coordinates in level-0 px, int64 (N, 2)."""
        with _reading(self.path) as file:
            return file.dataset("coords", "whole numbers", (len(self), 2)).read()

    def load(self) -> np.ndarray:
        """The embeddings, float32 (N, D)."""
        with _reading(self.path) as file:
            return self._finite(self._values(file).read())

    def blocks(self) -> Iterator[np.ndarray]:
        """The embeddings in blocks of some thousand, float32 (n ≥ 1, D). The whole array may not fit into memory."""
        with _reading(self.path) as file:
            values = self._values(file)
            for start in range(0, len(values), _BLOCK):
                yield self._finite(values.read(start, start + _BLOCK))

    def select(self, cells: np.ndarray) -> np.ndarray:
        """The embeddings of some cells, given by ascending indices (n,): (n, D) in the file's number format."""
        with _reading(self.path) as file:
            values = self._values(file)
            out = np.empty((len(cells), self.shape[1]), values.dtype)
            for start in range(0, len(values), _BLOCK):
                first, last = np.searchsorted(cells, (start, start + _BLOCK))
                if first < last:
                    out[first:last] = values.read(start, start + _BLOCK)[cells[first:last] - start]
            self._finite(out)
            return out

    def _values(self, file: Hdf5File) -> Hdf5Dataset:
        return file.dataset("features", "numbers", self.shape)

    def _finite(self, values: np.ndarray) -> np.ndarray:
        if not np.isfinite(values).all():
            raise FeatureFileError(
                f"{self.path} holds numbers that are not finite. Make it again with `cytomil embed`."
            )
        return values.astype(np.float32, copy=False)


@dataclass(frozen=True)
class EmbeddedBlock:
    """A block of cells to be written to a cache: ids, coords (n, 2), embeddings (n, D)."""

    instance_ids: list[str]
    coords: np.ndarray
    values: np.ndarray


def bytes_needed(n: int, dim: int, dtype: str) -> int:
    """Size of a cache of ``n`` cells and ``dim`` columns in bytes. Names longer than twelve letters need more."""
    values = _whole_chunks(n, CHUNK_CELLS) * dim * np.dtype(dtype).itemsize
    coords_and_ids = _whole_chunks(n, _CHUNK_ROWS) * (2 * 8 + 16)
    return values + coords_and_ids + _BYTES_PER_FILE + n * _BYTES_PER_NAME


def _whole_chunks(n: int, chunk: int) -> int:
    return -(-n // chunk) * chunk


def write_features(
    path: Path,
    bag_id: str,
    key: FeatureKey,
    dim: int,
    blocks: Iterable[EmbeddedBlock],
    mpp: float | None = None,
    unreadable: list[str] | None = None,
    crop_px: int = 0,
    encoder: str = "",
    groups: Sequence[int] = (),
) -> int:
    """Write a cache completely or not at all. One block is in memory at a time. Returns the number of instances.

    Args:
        path: of the cache.
        bag_id: name of the bag.
        key: identifies bag and encoder.
        dim: number of columns.
        blocks: the cells.
        mpp: µm per pixel of the cell images; None if unknown.
        unreadable: cells that could not be embedded, with the reason. May grow while ``blocks`` is consumed.
        crop_px: side of a crop in level-0 pixels, for programs that draw heat maps; 0 if unknown.
        encoder: readable description of the encoder. ``key`` holds the hash of its weights.
        groups: as in `Features`.
    """
    with replacing(path) as partial:
        with writing_hdf5(partial) as (file, require_written):
            values = file.create_dataset(
                "features", (0, dim), key.dtype, maxshape=(None, dim), chunks=(CHUNK_CELLS, dim)
            )
            coords = file.create_dataset("coords", (0, 2), np.int64, maxshape=(None, 2), chunks=(_CHUNK_ROWS, 2))
            ids = file.create_dataset("instance_id", (0,), _STRING, maxshape=(None,), chunks=(_CHUNK_ROWS,))

            def append(block: EmbeddedBlock) -> None:
                n = len(values)
                for dataset, content in ((values, block.values), (coords, block.coords), (ids, block.instance_ids)):
                    dataset.resize(n + len(block.instance_ids), axis=0)
                    dataset[n:] = content
                require_written()

            # Each block is written while the next one is computed.
            with ThreadPoolExecutor(1) as writer:
                written: Future[None] | None = None
                for block in blocks:
                    if written is not None:
                        written.result()
                    written = writer.submit(append, block)
                if written is not None:
                    written.result()
            n = len(values)
            # A dataset, because attributes are too small for thousands of names.
            file.create_dataset("unreadable", data=unreadable or [], dtype=_STRING)
            # The names that TRIDENT uses for the geometry of patches. 0 if the cells are single images.
            coords.attrs.update(
                {
                    "patch_size": crop_px,
                    "patch_size_level0": crop_px,
                    "level0_magnification": 0 if mpp is None else round(10 / mpp),
                    "target_magnification": 0 if mpp is None else round(10 / mpp),
                    "overlap": 0,
                    "name": bag_id,
                    "savetodir": "",
                }
            )
            file.attrs.update(
                {
                    "schema": SCHEMA,
                    "bag_id": bag_id,
                    "mpp": np.nan if mpp is None else mpp,
                    "n_instances": n,
                    "encoder": encoder,
                    "groups": np.array(groups, np.int64),
                    **vars(key),
                }
            )
        open_features(partial)
    return n


def open_features(path: Path | str) -> Features:
    """Open and validate a cache.

    Raises `FeatureFileError` if the file is truncated, is not a feature cache or is inconsistent.
    """
    path = Path(path)
    with _reading(path) as file:
        file.require_schema(SCHEMA, "a feature cache")
        n, mpp = file.attribute("n_instances", int), file.attribute("mpp", float)
        key = FeatureKey(**{name: file.attribute(name, str) for name in FeatureKey.__dataclass_fields__})
        bag_id = file.attribute("bag_id", str)
        dim = file.dataset("features", "numbers", (n, None)).shape[1]
        file.dataset("coords", "whole numbers", (n, 2))
        file.dataset("instance_id", "text", (n,))
        groups = file.whole_numbers("groups")
        if groups and (min(groups) < 1 or sum(groups) != dim):
            widths = ", ".join(map(str, groups))
            raise file.refused(f"is inconsistent: it lists groups of {widths} columns, but has {dim} columns")
        return Features(
            path=path,
            bag_id=bag_id,
            key=key,
            mpp=None if np.isnan(mpp) else mpp,
            shape=(n, dim),
            unreadable=tuple(file.dataset("unreadable", "text", (None,)).read()),
            groups=groups,
        )


def is_valid(path: Path, key: FeatureKey) -> bool:
    """Whether ``path`` is a complete cache with this key."""
    try:
        return open_features(path).key == key
    except FeatureFileError:
        return False


def _reading(path: Path) -> AbstractContextManager[Hdf5File]:
    return reading_hdf5(path, FeatureFileError, "features", "embed")
