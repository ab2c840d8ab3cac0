"""Reads and decodes cells in threads, in blocks that an encoder embeds. This module does not load PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle

import numpy as np

from cytomil.bags.bag_file import Bag
from cytomil.encoders.transform import CellTransform, decode_cells_for
from cytomil.limits import progress
from cytomil.morphology.measure import SIDE, describe
from cytomil.progress import Problem
from cytomil.threads import prefetch, usable_cores

_PIECE = 64  # cells: small enough to split a batch between threads, large enough for a negligible cost per read


@dataclass(frozen=True)
class EncodedCells:
    """Some cells with encoded images: ids, coords (n, 2) and images. ``problems`` lists cells that could not be read."""

    instance_ids: list[str]
    coords: np.ndarray
    images: list[bytes]
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class Preparation:
    """How to prepare a cell image: pixels for the encoder and, if ``described``, its morphology."""

    transform: CellTransform
    described: bool = False


@dataclass(frozen=True)
class CellBlock:
    """Some cells of a slide, ready for the encoder.

    Args:
        instance_ids: of the n readable cells.
        coords: of the readable cells, (n, 2).
        pixels: of the readable cells, uint8 (n, S, S, 3).
        morphology: of the readable cells, float32 (n, 109); (n, 0) if not requested.
        problems: the unreadable cells, named by their instance ids.
    """

    instance_ids: list[str]
    coords: np.ndarray
    pixels: np.ndarray
    morphology: np.ndarray
    problems: list[Problem]


def piece_sizes(batch_size: int) -> Iterator[int]:
    """An endless series of piece sizes for `feed`, which fill every batch exactly."""
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
    """Yield blocks of ``batch_size`` cells, including unreadable ones. The last block may be smaller.

    Blocks do not depend on number or timing of threads. Only enough cells to fill one batch and keep the threads busy are
    prefetched, so memory does not grow with the number of cells.

    Args:
        pieces: functions that read some cells each, in order, in the sizes of `piece_sizes`.
        preparation: of the images.
        batch_size: cells per block.
        workers: threads that call ``pieces``; 0: one per usable core.
    """
    begun = -(-batch_size // _PIECE) + 2 * (workers or usable_cores())
    parts: list[CellBlock] = []
    with closing(prefetch((partial(_decoded, piece, preparation) for piece in pieces), workers, begun)) as decoded:
        for part in decoded:
            parts.append(part)
            if sum(len(one.instance_ids) + len(one.problems) for one in parts) >= batch_size:
                yield _joined(parts)
                parts = []
    if parts:
        yield _joined(parts)


def _decoded(piece: Callable[[], EncodedCells], preparation: Preparation) -> CellBlock:
    progress()
    cells = piece()
    transforms = [preparation.transform]
    if preparation.described:  # the encoder's images may be too small to measure a nucleus
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


def bag_blocks(bag: Bag, preparation: Preparation, batch_size: int, workers: int = 0) -> Iterator[CellBlock]:
    """Decode a bag's cells in threads, in blocks of ``batch_size``; see `feed`."""
    pieces = (partial(_read_piece, bag, *span) for span in spans(len(bag), batch_size))
    return feed(pieces, preparation, batch_size, workers)


def _read_piece(bag: Bag, start: int, stop: int) -> EncodedCells:
    return EncodedCells(list(bag.instance_ids[start:stop]), bag.coords[start:stop], bag.images(start, stop))
