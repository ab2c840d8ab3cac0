"""What stands in a folder of slides: bag files, folders of cell images, whole slides, and what is none of these."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from cytomil.bags.bag_file import Bag, open_bag
from cytomil.bags.images import find_images, printable
from cytomil.bags.make import QC_FOLDER
from cytomil.bags.manifest import MANIFEST_NAME
from cytomil.errors import CytomilError, NoCellsError, NotFoundError
from cytomil.features.embed import bag_blocks
from cytomil.features.feeding import CellBlock, EncodedCells, Preparation, feed, spans
from cytomil.slides import is_slide_file
from cytomil.triage.whole_slide import SlideReading, WholeSlide

_BESIDE_SLIDES = frozenset(
    {".csv", ".json", ".txt", ".md", ".html", ".geojson", ".xml", ".yaml", ".yml", ".pdf", ".log"}
)


class SlideSource(Protocol):
    """One slide's cells, wherever they lie."""

    @property
    def mpp(self) -> float | None:
        """Micrometres per pixel; None where unknown."""
        ...

    @property
    def assumed_mpp(self) -> float | None:
        """The resolution that only the user vouches for, by `Resolutions.fallback`; None where it was not needed."""
        ...

    def fingerprint(self) -> str:
        """Names the slide's content: a cache made under another one is not used."""
        ...

    def blocks(self, preparation: Preparation, batch_size: int, workers: int = 0) -> Iterator[CellBlock]:
        """Decode the cells block by block, in ``workers`` threads (0: one per core) on which the blocks do not depend."""
        ...

    def images(self, instance_ids: list[str], least_px: int) -> list[bytes]:
        """The encoded images of these cells, ``least_px`` wide or more where they can be cut anew."""
        ...


@dataclass(frozen=True)
class Found:
    """One entry of the slide folder. ``name`` is what the worklist calls it."""

    name: str
    path: Path

    @property
    def shown_path(self) -> str:
        """The path as text that any file can hold, whatever bytes are in it."""
        return printable(str(self.path))


def discover(folder: Path) -> tuple[list[Found], list[str]]:
    """The slides in a folder, by name, and the names of files that are no slides.

    Every sub-folder and every file counts as a slide, unless it is hidden, a kind of file that lies beside slides
    (tables, notes), or the companion folder of an .mrxs slide. Raises `NotFoundError` where there is no slide at all.
    """
    if not folder.is_dir():
        state = "is a file, not a folder" if folder.exists() else "does not exist"
        raise NotFoundError(f"{folder} {state}. Name a folder that holds slides.")
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    companions = {entry.with_suffix("") for entry in entries if entry.suffix.lower() == ".mrxs"}
    if (folder / MANIFEST_NAME).is_file():
        companions.add(folder / QC_FOLDER)
    ignored = [e for e in entries if e in companions or (e.is_file() and e.suffix.lower() in _BESIDE_SLIDES)]
    slides = [Found(printable(entry.name), entry) for entry in entries if entry not in ignored]
    if not slides:
        raise NotFoundError(
            f"{folder} holds no slides. Put one sub-folder of cell images, one bag file (.h5) "
            "or one whole slide per slide in it."
        )
    return slides, [printable(entry.name) for entry in ignored]


def open_source(found: Found, reading: SlideReading) -> SlideSource:
    """Open one entry. Raises a `CytomilError` that says why it cannot be read."""
    if found.path.is_dir():
        return CellFolder(found.path)
    if found.path.suffix.lower() in (".h5", ".hdf5"):
        return BagSource(open_bag(found.path))
    if is_slide_file(found.path):
        return WholeSlide(found.path, reading)
    raise CytomilError("not read: neither a folder of cell images, nor a bag file, nor a whole slide.")


class BagSource:
    """A bag file; the label in it is not looked at."""

    assumed_mpp = None

    def __init__(self, bag: Bag) -> None:
        if len(bag) == 0:
            raise NoCellsError(f"{bag.path} holds no cells.")
        self._bag = bag
        self.mpp = bag.info.mpp

    def fingerprint(self) -> str:
        """The bag's own SHA-256."""
        return self._bag.sha256

    def blocks(self, preparation: Preparation, batch_size: int, workers: int = 0) -> Iterator[CellBlock]:
        """See `SlideSource`."""
        return bag_blocks(self._bag, preparation, batch_size, workers)

    def images(self, instance_ids: list[str], least_px: int) -> list[bytes]:
        """See `SlideSource`."""
        position = {name: i for i, name in enumerate(self._bag.instance_ids)}
        return [self._bag.images(position[name], position[name] + 1)[0] for name in instance_ids]


class CellFolder:
    """A folder of cell images, at any depth."""

    mpp = None
    assumed_mpp = None

    def __init__(self, path: Path) -> None:
        self._files = {printable(file.relative_to(path).as_posix()): file for file in find_images(path)}
        if not self._files:
            raise NoCellsError("holds no cell images (JPEG, PNG, TIFF or BMP).")

    def fingerprint(self) -> str:
        """SHA-256 over the images' names and bytes."""
        digest = hashlib.sha256()
        for name, file in self._files.items():
            digest.update(name.encode())
            digest.update(_read(file))
        return digest.hexdigest()

    def blocks(self, preparation: Preparation, batch_size: int, workers: int = 0) -> Iterator[CellBlock]:
        """See `SlideSource`."""
        names = list(self._files)
        pieces = (partial(self._read_piece, names[start:stop]) for start, stop in spans(len(names), batch_size))
        return feed(pieces, preparation, batch_size, workers)

    def _read_piece(self, names: list[str]) -> EncodedCells:
        return EncodedCells(names, np.full((len(names), 2), -1), [_read(self._files[name]) for name in names])

    def images(self, instance_ids: list[str], least_px: int) -> list[bytes]:
        """See `SlideSource`."""
        return [_read(self._files[name]) for name in instance_ids]


def _read(file: Path) -> bytes:
    """A file's bytes; none for a file that cannot be read, so that decoding lists it."""
    try:
        return file.read_bytes()
    except OSError:
        return b""
