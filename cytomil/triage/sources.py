"""The entries of a folder of slides: bag files, folders of cell images, whole slides, and other files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np

from cytomil.bags.bag_file import Bag, open_bag
from cytomil.bags.images import list_cell_files, looks_like_field, read_encoded
from cytomil.bags.slide_dir import list_slide_dir
from cytomil.errors import (
    CytomilError,
    ImageUnreadableError,
    NoCellsError,
    NotFoundError,
    SlideUnreadableError,
    why_unreadable,
)
from cytomil.features.cells import CellBlock, EncodedCells, Preparation, bag_blocks, feed, spans
from cytomil.files import sha256_of_file, sha256_of_json
from cytomil.pixels import is_picture, picture_size
from cytomil.progress import Problem
from cytomil.slides import is_slide_file
from cytomil.text import printable
from cytomil.triage.whole_slide import SlideReading, WholeSlide

_SIZES_LOOKED_AT = 50


class SlideSource(Protocol):
    """The cells of one slide, in any form of storage."""

    @property
    def mpp(self) -> float | None:
        """Micrometres per pixel; None if unknown."""
        ...

    @property
    def assumed_mpp(self) -> float | None:
        """The resolution that only the user gave, as `Resolutions.fallback`; None if it was not needed."""
        ...

    def fingerprint(self) -> str:
        """Identifies the slide's content: a cache with another state is not used."""
        ...

    def content_sha256(self) -> str:
        """SHA-256 of the slide's file; of several, of the JSON list of their names and hashes."""
        ...

    def blocks(self, preparation: Preparation, batch_size: int, workers: int = 0) -> Iterator[CellBlock]:
        """Decode the cells block by block, in ``workers`` threads (0: one per core). The number does not change the blocks."""
        ...

    def images(self, instance_ids: list[str], min_px: int) -> list[bytes]:
        """The encoded images of these cells, ``min_px`` wide or more where they can be cut anew."""
        ...


@dataclass(frozen=True)
class SlideEntry:
    """One slide of the folder. ``parts`` are the files of a slide of several. ``pseudonym`` is "" if the name is shown."""

    real_name: str
    path: Path
    parts: tuple[Path, ...] = ()
    pseudonym: str = ""

    @property
    def name(self) -> str:
        """What the worklist calls it."""
        return self.pseudonym or self.real_name

    @property
    def shown_path(self) -> str:
        """The path as text that any file can hold, whatever bytes are in it; the pseudonym if there is one."""
        return self.pseudonym or printable(str(self.path))

    def hide(self, text: str) -> str:
        """The text, with the slide's path, file names and name replaced by its pseudonym where there is one."""
        if not self.pseudonym:
            return text
        names = {str(self.path), self.path.name, self.path.stem, self.real_name, *(part.name for part in self.parts)}
        for name in sorted(map(printable, names), key=len, reverse=True):
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", self.pseudonym, text)
        return text


def discover(folder: Path, out: Path | None = None, may_be_empty: bool = False) -> tuple[list[SlideEntry], list[str]]:
    """The slides in a folder, by name, and the names of entries that are no slides; see `cytomil.bags.slide_dir`.

    ``out`` is the folder of the worklist, which is not a slide. Raises `NotFoundError` if there is no such folder. Also
    raises it if the folder holds no slide, unless it ``may_be_empty``.
    """
    if not folder.is_dir():
        state = "is a file, not a folder" if folder.exists() else "does not exist"
        raise NotFoundError(f"{folder} {state}. Name a folder that holds slides.")
    listed = list_slide_dir(folder, [] if out is None else [out])
    if not (listed.slides or may_be_empty):
        raise NotFoundError(
            f"{folder} holds no slides. Put one sub-folder of cell images, one bag file (.h5) "
            "or one whole slide per slide in it."
        )
    return [SlideEntry(slide.name, slide.path, slide.parts) for slide in listed.slides], list(listed.ignored)


def open_source(found: SlideEntry, reading: SlideReading) -> SlideSource:
    """Open one entry. Raises a `CytomilError` that says why it cannot be read."""
    if not found.path.exists():
        raise SlideUnreadableError(why_unreadable(found.path, FileNotFoundError(2, "it no longer exists")))
    if found.path.is_dir():
        return CellFolder(found.path)
    if not found.path.is_file():
        # A pipe or a device would keep its reader waiting for ever.
        raise SlideUnreadableError("is not a regular file.")
    if found.path.suffix.lower() in (".h5", ".hdf5"):
        return BagSource(open_bag(found.path))
    if not (is_slide_file(found.path) or found.parts or is_picture(found.path)):
        raise CytomilError("not read: neither a folder of cell images, nor a bag file, nor a whole slide.")
    return WholeSlide(found.path, reading, found.parts)


def n_cells(found: SlideEntry) -> int | None:
    """The number of cells of a bag or folder; None for a whole slide. Raises a `CytomilError` if a bag cannot be read."""
    if found.path.is_dir():
        return len(list_cell_files(found.path).files)
    if found.path.is_file() and found.path.suffix.lower() in (".h5", ".hdf5"):
        return len(open_bag(found.path))
    return None


class BagSource:
    """A bag file. The label in it is not read."""

    assumed_mpp = None

    def __init__(self, bag: Bag) -> None:
        if len(bag) == 0:
            raise NoCellsError(f"{bag.path} holds no cells.")
        self._bag = bag
        self.mpp = bag.info.mpp

    def fingerprint(self) -> str:
        """SHA-256 of the file, because the hash inside the bag does not show an exchanged cell."""
        return self.content_sha256()

    def content_sha256(self) -> str:
        """See `SlideSource`."""
        return sha256_of_file(self._bag.path)

    def blocks(self, preparation: Preparation, batch_size: int, workers: int = 0) -> Iterator[CellBlock]:
        """See `SlideSource`."""
        return bag_blocks(self._bag, preparation, batch_size, workers)

    def images(self, instance_ids: list[str], min_px: int) -> list[bytes]:
        """See `SlideSource`."""
        wanted = set(instance_ids)
        position = {name: i for i, name in enumerate(self._bag.instance_ids) if name in wanted}
        return [self._bag.images(position[name], position[name] + 1)[0] for name in instance_ids]


class CellFolder:
    """A folder of cell images, at any depth. Files in it that cannot be cells count as unreadable."""

    mpp = None
    assumed_mpp = None

    def __init__(self, path: Path) -> None:
        listed = list_cell_files(path)
        self._files = {printable(file.relative_to(path).as_posix()): file for file in listed.files}
        self._left_out = listed.left_out
        if not self._files:
            raise NoCellsError(listed.why_none())

    def fingerprint(self) -> str:
        """SHA-256 over the images' names and bytes, and over what was left out."""
        digest = hashlib.sha256(repr(self._left_out).encode())
        for name, file in self._files.items():
            digest.update(name.encode())
            digest.update(_bytes_or_fault(file, name))
        return digest.hexdigest()

    def content_sha256(self) -> str:
        """See `SlideSource`."""
        return sha256_of_json(
            [(name, hashlib.sha256(_bytes_or_fault(f, name)).hexdigest()) for name, f in self._files.items()]
        )

    def cautions(self) -> Iterator[str]:
        """What a reader must know about the images themselves."""
        sizes = [size for size in map(picture_size, _some(list(self._files.values()))) if size]
        large = [size for size in sizes if looks_like_field(*size)]
        if len(large) * 2 > len(sizes):
            width, height = large[0]
            yield (
                f"its images are as large as whole fields ({width}×{height} px): if they show more than one cell each, "
                "put them directly into the folder of slides."
            )

    def blocks(self, preparation: Preparation, batch_size: int, workers: int = 0) -> Iterator[CellBlock]:
        """See `SlideSource`."""
        names = list(self._files)
        pieces = (partial(self._read_piece, names[start:stop]) for start, stop in spans(len(names), batch_size))
        return feed(chain(pieces, [self._left_out_piece]), preparation, batch_size, workers)

    def _read_piece(self, names: list[str]) -> EncodedCells:
        read: dict[str, bytes] = {}
        problems = []
        for name in names:
            try:
                read[name] = read_encoded(self._files[name], name)
            except ImageUnreadableError as error:
                problems.append(Problem(name, str(error).removeprefix(f"{name}: ")))
        return EncodedCells(list(read), np.full((len(read), 2), -1), list(read.values()), problems)

    def _left_out_piece(self) -> EncodedCells:
        return EncodedCells([], np.empty((0, 2), int), [], list(self._left_out))

    def images(self, instance_ids: list[str], min_px: int) -> list[bytes]:
        """See `SlideSource`."""
        return [read_encoded(self._files[name], name) for name in instance_ids]


def _bytes_or_fault(file: Path, name: str) -> bytes:
    try:
        return read_encoded(file, name)
    except ImageUnreadableError as error:
        return str(error).encode()


def _some(files: Sequence[Path]) -> Sequence[Path]:
    """A few of them, spread evenly."""
    return files[:: max(1, len(files) // _SIZES_LOOKED_AT)]
