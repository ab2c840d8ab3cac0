"""The training cells in memory: decoded once, at training size, uint8."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cytomil.bags.bag_file import content_sha256, open_bag
from cytomil.bags.manifest import BagRow, Manifest
from cytomil.encoders.transform import CellTransform, decode_cells
from cytomil.errors import BagFileError
from cytomil.progress import Listener, Problem

_BLOCK = 256


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
    for label, name in ((0, "negative"), (1, "positive")):
        if not any(row.label == label for row in rows):
            raise BagFileError(f"{manifest.folder}: no {name} training bag; pretraining needs both labels.")
    n = sum(row.n_instances for row in rows)
    pixels = np.empty((n, transform.image_size, transform.image_size, 3), np.uint8)
    is_positive = np.empty(n, bool)
    bags = np.empty(n, np.int64)
    problems: list[Problem] = []
    filled = 0
    for number, row in enumerate(listener.track(rows, "decoding cells", unit="bags")):
        bag = open_bag(manifest.file_of(row))
        if content_sha256(bag) != row.sha256:
            raise BagFileError(f"{bag.path} is not the bag bags.csv lists (altered or exchanged). Make the bags again.")
        for start in range(0, len(bag), _BLOCK):
            names = [f"{row.bag_id}/{name}" for name in bag.instance_ids[start : start + _BLOCK]]
            block, _, unreadable = decode_cells(bag.images(start, start + _BLOCK), names, transform)
            pixels[filled : filled + len(block)] = block
            is_positive[filled : filled + len(block)] = row.label == 1
            bags[filled : filled + len(block)] = number
            filled += len(block)
            problems += unreadable
    bag_numbers = torch.from_numpy(bags[:filled])
    cells = TrainingCells(
        torch.from_numpy(pixels[:filled]),
        torch.from_numpy(is_positive[:filled]),
        bag_numbers,
        _patient_numbers(rows)[bag_numbers],
        tuple(problems),
    )
    for label, name in ((False, "negative"), (True, "positive")):
        if int((cells.is_positive == label).sum()) < 2:
            raise BagFileError(f"{manifest.folder}: fewer than two readable cells in {name} training bags.")
    return cells


def _patient_numbers(rows: tuple[BagRow, ...]) -> Tensor:
    names = [row.patient_id or f"bag:{row.bag_id}" for row in rows]
    order = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([order[name] for name in names])
