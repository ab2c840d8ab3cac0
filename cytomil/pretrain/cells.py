"""The training cells in memory: decoded once, at training size, uint8."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cytomil.bags.bag_file import Bag, content_sha256
from cytomil.bags.manifest import BagRow, Manifest, open_listed
from cytomil.encoders.transform import CellTransform, decode_cells
from cytomil.errors import BagFileError
from cytomil.progress import Listener, Problem

_BLOCK = 64
_BLOCKS_AT_ONCE = 32


@dataclass(frozen=True)
class TrainingCells:
    """The cells of the training bags, without instance labels.

    ``pixels`` uint8 (N, S, S, 3); ``is_positive`` bool (N,): the label of each cell's slide; ``bag`` and ``patient``
    int64 (N,): a number for each cell's bag and patient, a bag of unknown patient being a patient of its own.
    """

    pixels: Tensor
    is_positive: Tensor
    bag: Tensor
    patient: Tensor
    problems: tuple[Problem, ...]

    def __len__(self) -> int:
        return len(self.pixels)

    def channel_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel in 0 to 1, each shape (3,), over at most 4,096 cells."""
        step = max(1, len(self) // 4096)
        sample = self.pixels[::step].double().div(255).flatten(0, 2)
        return sample.mean(dim=0).float(), sample.std(dim=0).clamp(min=1e-3).float()


def bytes_needed(rows: tuple[BagRow, ...], image_size: int) -> int:
    """Memory that the decoded cells of these bags will take, in bytes."""
    return sum(row.n_instances for row in rows) * 3 * image_size**2


def load_training_cells(
    manifest: Manifest, rows: tuple[BagRow, ...], transform: CellTransform, listener: Listener
) -> TrainingCells:
    """Decode the bags' cells. Raises `BagFileError` if a label has no bag, or a bag is not the one the manifest lists."""
    n = sum(row.n_instances for row in rows)
    pixels = np.empty((n, transform.image_size, transform.image_size, 3), np.uint8)
    bag, problems = fill_cells(pixels, manifest, rows, transform, listener)
    return assemble(torch.from_numpy(pixels), bag, problems, manifest, rows)


def fill_cells(
    pixels: Any, manifest: Manifest, rows: tuple[BagRow, ...], transform: CellTransform, listener: Listener
) -> tuple[Tensor, tuple[Problem, ...]]:
    """Decode the bags' cells, on every core, into an array that takes slices (NumPy's or HDF5's), uint8 (N, S, S, 3).

    Returns the place of each readable cell's bag among ``rows``, int64, shape (number of readable cells,), and the
    unreadable cells.
    """
    for label, name in ((0, "negative"), (1, "positive")):
        if not any(row.label == label for row in rows):
            raise BagFileError(f"{manifest.folder}: no {name} training bag; pretraining needs both labels.")
    bags: list[Tensor] = []
    problems: list[Problem] = []
    filled = 0
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for number, row in enumerate(listener.track(rows, "decoding cells", unit="bags")):
            bag = open_listed(manifest, row)
            if content_sha256(bag) != row.sha256:
                raise BagFileError(
                    f"{bag.path} is not the bag bags.csv lists (altered or exchanged). Make the bags again."
                )
            for block, unreadable in _decoded(bag, row.bag_id, transform, pool):
                pixels[filled : filled + len(block)] = block
                bags.append(torch.full((len(block),), number))
                filled += len(block)
                problems += unreadable
    return torch.cat(bags), tuple(problems)


def _decoded(
    bag: Bag, bag_id: str, transform: CellTransform, pool: ThreadPoolExecutor
) -> Iterator[tuple[np.ndarray, list[Problem]]]:
    starts = range(0, len(bag), _BLOCK)
    for first in range(0, len(starts), _BLOCKS_AT_ONCE):  # so that memory holds no more than these of a huge bag
        some = starts[first : first + _BLOCKS_AT_ONCE]
        encoded = [bag.images(start, start + _BLOCK) for start in some]
        names = [[f"{bag_id}/{name}" for name in bag.instance_ids[start : start + _BLOCK]] for start in some]
        for block, _, unreadable in pool.map(decode_cells, encoded, names, repeat(transform)):
            yield block, unreadable


def assemble(
    pixels: Tensor, bag: Tensor, problems: tuple[Problem, ...], manifest: Manifest, rows: tuple[BagRow, ...]
) -> TrainingCells:
    """The cells of which `fill_cells` told. Raises `BagFileError` where either label has fewer than two."""
    of_bag = torch.tensor([row.label == 1 for row in rows])
    names = [row.patient_id or f"bag:{row.bag_id}" for row in rows]
    number_of = {name: number for number, name in enumerate(dict.fromkeys(names))}
    patient = torch.tensor([number_of[name] for name in names])
    cells = TrainingCells(pixels[: len(bag)], of_bag[bag], bag, patient[bag], problems)
    for label, name in ((False, "negative"), (True, "positive")):
        if int((cells.is_positive == label).sum()) < 2:
            raise BagFileError(f"{manifest.folder}: fewer than two readable cells in {name} training bags.")
    return cells
