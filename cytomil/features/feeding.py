"""Feeds an engine: cells are read, decoded and brought to size in threads while it works on those before them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle

import numpy as np

from cytomil.encoders.transform import CellTransform, decode_cells_for
from cytomil.morphology.descriptors import SIDE, describe
from cytomil.progress import Problem
from cytomil.threads import ahead, usable_cores

_PIECE = 64  # cells: small enough that several threads share a batch, large enough that reading a piece costs nothing


@dataclass(frozen=True)
class EncodedCells:
    """Some cells as they came: ids, coords (n, 2) and encoded images; ``problems`` are those that could not be read."""

    instance_ids: list[str]
    coords: np.ndarray
    images: list[bytes]
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class Preparation:
    """What is made of a cell's image: pixels for the encoder, and, if ``described``, its morphology."""

    transform: CellTransform
    described: bool = False


@dataclass(frozen=True)
class CellBlock:
    """Some cells of a slide, ready for the encoder.

    ``pixels`` uint8 (n, S, S, 3) of the readable cells, ``instance_ids`` and ``coords`` (n, 2) theirs, ``morphology`` float32
    (n, 109), or (n, 0) where it was not asked for; ``problems`` are the unreadable ones, each named by its
    instance id.
    """

    instance_ids: list[str]
    coords: np.ndarray
    pixels: np.ndarray
    morphology: np.ndarray
    problems: list[Problem]


def piece_sizes(batch_size: int) -> Iterator[int]:
    """Sizes of the pieces to hand to `feed`, without end: they fill batch after batch exactly."""
    full, rest = divmod(batch_size, _PIECE)
    return cycle([_PIECE] * full + [rest] * (rest > 0))


def spans(n: int, batch_size: int) -> Iterator[tuple[int, int]]:
    """Start and stop of the pieces of ``n`` cells."""
    start = 0
    for size in piece_sizes(batch_size):
        if start >= n:
            return
        yield start, min(start + size, n)
        start += size


def feed(
    pieces: Iterable[Callable[[], EncodedCells]], preparation: Preparation, batch_size: int, workers: int = 0
) -> Iterator[CellBlock]:
    """Yield blocks of ``batch_size`` cells, the unreadable ones counted, the last one smaller.

    ``pieces``: functions that read some cells each, in order, of the sizes that `piece_sizes` tells; they are called in
    ``workers`` threads (0: one per usable core). Blocks depend on neither the number nor the timing of threads. Decoded
    ahead is what fills one batch and keeps the threads busy, so memory does not grow with the number of cells.
    """
    begun = -(-batch_size // _PIECE) + 2 * (workers or usable_cores())
    parts: list[CellBlock] = []
    with closing(ahead((partial(_decoded, piece, preparation) for piece in pieces), workers, begun)) as decoded:
        for part in decoded:
            parts.append(part)
            if sum(len(one.instance_ids) + len(one.problems) for one in parts) >= batch_size:
                yield _joined(parts)
                parts = []
    if parts:
        yield _joined(parts)


def _decoded(piece: Callable[[], EncodedCells], preparation: Preparation) -> CellBlock:
    cells = piece()
    transforms = [preparation.transform]
    if preparation.described:  # in more pixels: the encoder's may be too few to see a nucleus' shape in
        transforms.append(CellTransform(SIDE, preparation.transform.center_crop))
    (pixels, *larger), kept, problems = decode_cells_for(cells.images, cells.instance_ids, transforms)
    ids = [cells.instance_ids[i] for i in kept]
    morphology = describe(larger[0]) if larger else np.empty((len(ids), 0), np.float32)
    return CellBlock(
        ids, cells.coords[np.array(kept, int)].reshape(-1, 2), pixels, morphology, cells.problems + problems
    )


def _joined(parts: list[CellBlock]) -> CellBlock:
    if len(parts) == 1:
        return parts[0]
    return CellBlock(
        [name for part in parts for name in part.instance_ids],
        np.concatenate([part.coords for part in parts]),
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.morphology for part in parts]),
        [problem for part in parts for problem in part.problems],
    )
