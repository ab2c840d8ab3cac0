"""The cells that a caller hands over, in any form, as blocks for an encoder."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from cytomil.api.bags import LabelledBag
from cytomil.bags.bag_file import Bag, open_bag
from cytomil.bags.images import read_encoded
from cytomil.errors import ImageUnreadableError, NotFoundError
from cytomil.features.cells import CellBlock, EncodedCells, Preparation, feed, spans
from cytomil.progress import Problem
from cytomil.text import printable
from cytomil.triage.sources import BagSource, CellFolder

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
    # One way into the encoder for all images. PNG keeps every pixel.
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def _is_image(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)
