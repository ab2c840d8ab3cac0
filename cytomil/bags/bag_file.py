"""The bag file: one slide's cells, still encoded, in one HDF5 file.

A `Bag` has no instance labels, so that training code cannot see them. Evaluation reads them with
`cytomil.bags.instance_labels.read_instance_labels`.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import h5py
import numpy as np

from cytomil.errors import BagFileError, SettingsError
from cytomil.files import replacing
from cytomil.hdf5 import Hdf5Dataset, Hdf5File, writing_hdf5
from cytomil.slides.find import Cutting
from cytomil.workers.apart import reading_hdf5


class Strings(Sequence[str]):
    """A sequence of strings, stored as one block of UTF-8 text.

    It takes 8 bytes per string in addition to the text, and a list takes about 70. Indexing creates a new string. Only
    `extend` changes the sequence.
    """

    def __init__(self, strings: Iterable[str] = ()) -> None:
        self._text = bytearray()
        self._ends = array("q", [0])
        self.extend(strings)

    def extend(self, strings: Iterable[str]) -> None:
        """Add strings at the end."""
        for string in strings:
            self._text += string.encode("utf-8", "surrogatepass")
            self._ends.append(len(self._text))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(self._at(i) for i in range(*index.indices(len(self))))
        i = index + len(self) if index < 0 else index
        if not 0 <= i < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} strings")
        return self._at(i)

    def __iter__(self) -> Iterator[str]:
        return map(self._at, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Strings):
            return self._text == other._text and self._ends == other._ends
        return isinstance(other, list | tuple) and len(self) == len(other) and all(map(str.__eq__, self, other))

    def __hash__(self) -> int:
        return hash((bytes(self._text), self._ends.tobytes()))

    def __repr__(self) -> str:
        return f"Strings({list(self)!r})"

    def _at(self, i: int) -> str:
        return self._text[self._ends[i] : self._ends[i + 1]].decode("utf-8", "surrogatepass")


SCHEMA = "cytomil.bag/1"
UNKNOWN = -1
_IDS_PER_BLOCK = 8192
CHUNK_CELLS = 64  # measured: python -m bench hdf5
_DATASETS = {
    "images": "bytes",
    "instance_id": "text",
    "coords": "whole numbers",
    "instance_label": "whole numbers",
    "instance_source": "text",
}
_STRING = h5py.string_dtype("utf-8")


@dataclass(frozen=True)
class Instance:
    """One cell to be written to a bag file. Neither ``label`` nor ``source`` reaches training.

    Args:
        instance_id: the cell's name, unique in its bag.
        image: the encoded image.
        coords: top-left corner of the crop (x, y) in level-0 pixels; (-1, -1) if there is none.
        label: 1 abnormal, 0 normal, -1 unknown.
        source: the file or class that the image comes from.
    """

    instance_id: str
    image: bytes
    coords: tuple[int, int] = (-1, -1)
    label: int = UNKNOWN
    source: str = ""


@dataclass(frozen=True)
class BagInfo:
    """The metadata of a bag.

    ``mpp`` is the resolution of the cell images in µm per pixel. ``cutting`` says how they were cut out of a whole slide.
    Both are None if unknown.
    """

    bag_id: str
    label: int
    patient_id: str = ""
    mpp: float | None = None
    source: str = ""
    cutting: Cutting | None = None


@dataclass(frozen=True)
class Bag:
    """A validated bag file. Images are read on request. It has no instance labels."""

    path: Path
    info: BagInfo
    sha256: str
    instance_ids: Strings
    coords: np.ndarray

    def __len__(self) -> int:
        return len(self.instance_ids)

    def images(self, start: int = 0, stop: int | None = None) -> list[bytes]:
        """The encoded images of instances ``start`` to ``stop``."""
        with reading(self.path) as file:
            return [encoded.tobytes() for encoded in column(file, "images").read(start, stop)]


def write_bag(path: Path, info: BagInfo, instances: Iterable[Instance]) -> tuple[str, int]:
    """Write a bag file completely or not at all. Only one block of cells is in memory at a time.

    Returns the bag's SHA-256 and its number of instances.
    """
    digest = _start_digest(info)
    n = 0
    with replacing(path) as partial:
        with writing_hdf5(partial) as (file, require_written):
            images = file.create_dataset(
                "images", (0,), h5py.vlen_dtype(np.uint8), maxshape=(None,), chunks=(CHUNK_CELLS,)
            )
            strings = {
                name: file.create_dataset(name, (0,), _STRING, maxshape=(None,), chunks=(256,))
                for name in ("instance_id", "instance_source")
            }
            coords = file.create_dataset("coords", (0, 2), np.int64, maxshape=(None, 2), chunks=(256, 2))
            labels = file.create_dataset("instance_label", (0,), np.int8, maxshape=(None,), chunks=(256,))
            for block in _blocks(instances, CHUNK_CELLS):
                for dataset in (images, *strings.values(), coords, labels):
                    dataset.resize(n + len(block), axis=0)
                for i, instance in enumerate(block, start=n):
                    images[i] = np.frombuffer(instance.image, np.uint8)
                    _update_digest(digest, instance.instance_id, instance.coords, instance.image)
                strings["instance_id"][n:] = [i.instance_id for i in block]
                strings["instance_source"][n:] = [i.source for i in block]
                coords[n:] = [i.coords for i in block]
                labels[n:] = [i.label for i in block]
                n += len(block)
                require_written()
            file.attrs.update(
                {
                    "schema": SCHEMA,
                    "bag_id": info.bag_id,
                    "patient_id": info.patient_id,
                    "label": info.label,
                    "mpp": np.nan if info.mpp is None else info.mpp,
                    "source": info.source,
                    "cutting": _cutting_json(info),
                    "n_instances": n,
                    "sha256": digest.hexdigest(),
                }
            )
        open_bag(partial)
    return digest.hexdigest(), n


def open_bag(path: Path | str) -> Bag:
    """Open and validate a bag file.

    Raises:
        BagFileError: the file is truncated, is not a bag file, has another schema, or its datasets contradict its
            attributes.
    """
    path = Path(path)
    with reading(path) as file:
        file.require_schema(SCHEMA, "a bag file")
        info, sha256 = _info(file), file.attribute("sha256", str)
        columns = {name: column(file, name) for name in _DATASETS}
        return Bag(
            path=path,
            info=info,
            sha256=sha256,
            instance_ids=_in_blocks(columns["instance_id"]),
            coords=columns["coords"].read(),
        )


def _in_blocks(ids: Hdf5Dataset) -> Strings:
    """All ids, read block by block. For a large bag, the strings of h5py would take ten times as much memory."""
    strings = Strings()
    for start in range(0, len(ids), _IDS_PER_BLOCK):
        strings.extend(ids.read(start, start + _IDS_PER_BLOCK))
    return strings


def content_sha256(bag: Bag) -> str:
    """SHA-256 of the parts of a bag that training reads. It equals ``bag.sha256`` unless the file has changed."""
    cells = (
        Instance(bag.instance_ids[i], image, tuple(bag.coords[i]))
        for start in range(0, len(bag), 256)
        for i, image in enumerate(bag.images(start, start + 256), start=start)
    )
    return sha256_of_cells(bag.info, cells)


def sha256_of_cells(info: BagInfo, instances: Iterable[Instance]) -> str:
    """The SHA-256 of the bag that `write_bag` would make of these cells. Nothing is written."""
    digest = _start_digest(info)
    for instance in instances:
        _update_digest(digest, instance.instance_id, instance.coords, instance.image)
    return digest.hexdigest()


def reading(path: Path) -> AbstractContextManager[Hdf5File]:
    """Open a bag file for reading. Raises `BagFileError` if the file cannot be read."""
    return reading_hdf5(path, BagFileError, "bags", "make-bags")


def column(file: Hdf5File, name: str) -> Hdf5Dataset:
    """One dataset of a bag file, shape (N,), or (N, 2) for coords. Raises `BagFileError` if type or shape differ."""
    n = file.attribute("n_instances", int)
    return file.dataset(name, _DATASETS[name], (n, 2) if name == "coords" else (n,))


def _info(file: Hdf5File) -> BagInfo:
    mpp, label = file.attribute("mpp", float), file.attribute("label", int)
    if not (np.isnan(mpp) or (np.isfinite(mpp) and mpp > 0)) or label not in (0, 1):
        raise file.refused(f"has {mpp:g} µm per pixel and label {label}, which is impossible")
    return BagInfo(
        bag_id=file.attribute("bag_id", str),
        label=label,
        patient_id=file.attribute("patient_id", str),
        mpp=None if np.isnan(mpp) else mpp,
        source=file.attribute("source", str),
        cutting=_cutting(file),
    )


def _cutting(file: Hdf5File) -> Cutting | None:
    text = file.attribute("cutting", str)
    try:
        fields = json.loads(text)
        return None if fields is None else Cutting(**fields)
    except (ValueError, TypeError, RecursionError, SettingsError) as error:
        raise file.refused(f"has an invalid attribute 'cutting' ({error})") from None


def _start_digest(info: BagInfo) -> hashlib._Hash:
    mpp = None if info.mpp is None else float(info.mpp)
    fields = (SCHEMA, info.bag_id, info.patient_id, int(info.label), mpp, _cutting_json(info))
    return hashlib.sha256(repr(fields).encode())


def _cutting_json(info: BagInfo) -> str:
    return json.dumps(None if info.cutting is None else info.cutting.to_json())


def _update_digest(digest: hashlib._Hash, instance_id: str, coords: Iterable[int], image: bytes) -> None:
    x, y = coords
    digest.update(repr((instance_id, (int(x), int(y)), len(image))).encode())
    digest.update(image)


def _blocks(instances: Iterable[Instance], size: int) -> Iterator[list[Instance]]:
    block: list[Instance] = []
    for instance in instances:
        block.append(instance)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block


@dataclass(frozen=True)
class Draw:
    """At most ``max_cells`` cells per bag, drawn without replacement; 0: all cells. ``seed`` and the bag's id decide."""

    max_cells: int = 0
    seed: int = 0

    def count(self, n: int) -> int:
        """Number of cells drawn from a bag of ``n`` cells."""
        return min(n, self.max_cells) if self.max_cells else n

    def indices(self, bag_id: str, n: int) -> np.ndarray:
        """Indices of the drawn cells among a bag's ``n`` cells, in ascending order, int64 (`count`,)."""
        if self.count(n) == n:
            return np.arange(n)
        rng = np.random.default_rng([self.seed, *bag_id.encode()])
        return np.sort(rng.choice(n, self.max_cells, replace=False))


ALL = Draw()
