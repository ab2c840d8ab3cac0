"""Bags from Python, and cells in any form that a caller may pass, as blocks for an encoder."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import overload

import numpy as np
from PIL import Image

from cytomil.bags.bag_file import Bag, open_bag
from cytomil.bags.images import open_image, read_encoded
from cytomil.bags.manifest import RECORD_NAME, BagRow, Manifest, open_listed, read_manifest
from cytomil.errors import ImageUnreadableError, NotFoundError
from cytomil.features.cells import CellBlock, EncodedCells, Preparation, feed, spans
from cytomil.progress import Problem
from cytomil.text import printable
from cytomil.triage.sources import BagSource, CellFolder

_BLOCK = 256


@dataclass(frozen=True)
class LabelledBag:
    """One bag of a folder: its row in bags.csv, and its images.

    Attributes:
        name: the bag's id.
        label: 1 for a positive (diseased) bag, 0 for a negative one.
        split: "train" or "test".
        patient: the patient's id; empty where unknown.
        path: the bag file.
        instance_ids: one id per cell, in the order of the images.
    """

    name: str
    label: int
    split: str
    patient: str
    path: Path
    instance_ids: Sequence[str]
    _manifest: Manifest
    _row: BagRow

    def __len__(self) -> int:
        return len(self.instance_ids)

    def __fspath__(self) -> str:
        return str(self.path)

    def __iter__(self) -> Iterator[np.ndarray]:
        """The images, one by one, uint8 (H, W, 3); they are read in blocks, so a large bag needs little memory."""
        bag = open_listed(self._manifest, self._row)
        for start in range(0, len(bag), _BLOCK):
            encoded = bag.images(start, start + _BLOCK)
            for name, image in zip(bag.instance_ids[start : start + _BLOCK], encoded, strict=True):
                yield np.asarray(open_image(image, name))

    @property
    def images(self) -> list[np.ndarray]:
        """All images, uint8 (H, W, 3) each, read at each access.

        Raises:
            BagFileError: the file is damaged, or was changed since the folder was opened.
            ImageUnreadableError: an image cannot be decoded.
        """
        return list(self)

    def __repr__(self) -> str:
        return f"LabelledBag({self.name!r}, label={self.label}, split={self.split!r}, cells={len(self)})"


class Bags(Sequence[LabelledBag]):
    """A folder of bags, in the order of bags.csv. It can be passed where a path is expected."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._manifest = read_manifest(self.folder)

    def __len__(self) -> int:
        return len(self._manifest.rows)

    @overload
    def __getitem__(self, place: int) -> LabelledBag: ...
    @overload
    def __getitem__(self, place: slice) -> list[LabelledBag]: ...
    def __getitem__(self, place: int | slice) -> LabelledBag | list[LabelledBag]:
        rows = self._manifest.rows[place]
        return self._opened(rows) if isinstance(rows, BagRow) else [self._opened(row) for row in rows]

    def _opened(self, row: BagRow) -> LabelledBag:
        bag = open_listed(self._manifest, row)
        return LabelledBag(
            row.bag_id, row.label, row.split, row.patient_id, bag.path, bag.instance_ids, self._manifest, row
        )

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def names(self) -> tuple[str, ...]:
        """The bags' ids."""
        return tuple(row.bag_id for row in self._manifest.rows)

    @property
    def labels(self) -> tuple[int, ...]:
        """The bags' labels: 1 positive, 0 negative."""
        return tuple(row.label for row in self._manifest.rows)

    @property
    def left_out(self) -> tuple[tuple[str, str], ...]:
        """The images and slides that could not be used when the bags were made, each with the reason."""
        record = self.folder / RECORD_NAME
        if not record.is_file():
            return ()
        return tuple((where, why) for where, why in json.loads(record.read_text(encoding="utf-8"))["left_out"])

    def __repr__(self) -> str:
        return f"Bags({str(self.folder)!r}: {len(self)} bags, {sum(self.labels)} positive)"


def open_bags(folder: str | Path) -> Bags:
    """Open a folder of bags.

    Args:
        folder: a folder with bags.csv, as `cytomil.make_bags` or `cytomil make-bags` wrote it.

    Returns:
        A sequence of bags. Each one has a name, a label and its images.

    Raises:
        NotFoundError: there is no bags.csv.
        BagFileError: bags.csv is damaged; or, once a bag is read, that bag is.

    >>> import cytomil
    >>> bags = cytomil.open_bags("data/bags")
    >>> [(bag.label, len(bag)) for bag in bags[:2]]
    [(0, 10), (1, 10)]
    >>> bags[0].images[0].shape, bags[0].images[0].dtype
    ((24, 24, 3), dtype('uint8'))
    """
    return Bags(folder)


OneImage = np.ndarray | Image.Image | bytes | str | Path
Images = str | Path | Bag | LabelledBag | np.ndarray | Iterable[OneImage]
"""A folder of images, an image file, a bag or its file, an array (N, H, W, 3), or images one by one."""


def blocks_of(images: Images, preparation: Preparation, batch_size: int, workers: int) -> Iterator[CellBlock]:
    """Decode cells block by block, in the order given; a folder's by path.

    Raises:
        NotFoundError: there is no such file or folder.
        NoCellsError: the folder holds no images, or the bag no cells.
        ValueError: an array is not uint8 of shape (N, H, W, 3), or an image of shape (H, W, 3) or (H, W).
    """
    if isinstance(images, Bag | LabelledBag):
        return BagSource(open_bag(images.path)).blocks(preparation, batch_size, workers)
    if isinstance(images, str | os.PathLike):
        path = Path(images)
        if path.is_dir():
            return CellFolder(path).blocks(preparation, batch_size, workers)
        if not path.exists():
            raise NotFoundError(f"{path} does not exist. Name a folder of cell images, an image or a bag file.")
        if path.suffix.lower() in (".h5", ".hdf5"):
            return BagSource(open_bag(path)).blocks(preparation, batch_size, workers)
        return _each([path], preparation, batch_size, workers)
    if isinstance(images, np.ndarray) and images.ndim != 4:
        raise ValueError(f"an array of images needs the shape (N, H, W, 3), got {images.shape}")
    return _each(list(images), preparation, batch_size, workers)


def _each(images: Sequence[OneImage], preparation: Preparation, batch_size: int, workers: int) -> Iterator[CellBlock]:
    pieces = (partial(_read, images, start, stop) for start, stop in spans(len(images), batch_size))
    return feed(pieces, preparation, batch_size, workers)


def _read(images: Sequence[OneImage], start: int, stop: int) -> EncodedCells:
    names, encoded, problems = [], [], []
    for number in range(start, stop):
        image = images[number]
        name = printable(os.fspath(image)) if isinstance(image, str | os.PathLike) else f"image {number}"
        try:
            encoded.append(_encoded(image, name))
            names.append(name)
        except ImageUnreadableError as error:
            problems.append(Problem(name, str(error).removeprefix(f"{name}: ")))
    return EncodedCells(names, np.full((len(names), 2), -1), encoded, problems)


def _encoded(image: OneImage, name: str) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        return read_encoded(Path(image), name)
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or not _is_image(image.shape):
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"{name}: an image needs uint8 of shape (H, W, 3) or (H, W), got {got}")
    # All images reach the encoder in the same form. PNG is lossless.
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def _is_image(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)
