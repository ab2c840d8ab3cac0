"""The training cells, decoded once at training size, and checks that memory and disk suffice for them."""

from __future__ import annotations

import ctypes
import json
import platform
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from cytomil.bags.bag_file import ALL, Bag, Draw
from cytomil.bags.manifest import BagRow, Manifest, open_unaltered
from cytomil.encoders.transform import CellTransform, decode_cells
from cytomil.errors import BagFileError, CytomilError, SettingsError
from cytomil.files import replacing, sha256_of_json
from cytomil.hdf5 import writing_hdf5
from cytomil.progress import Listener, Memory, Problem, require_disk_space
from cytomil.workers.apart import reading_sealed

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h


def require_memory(needed: int, what: str, processes: int, listener: Listener) -> None:
    """Report how much memory the cells (``what``) take. Raises `SettingsError` if too little is available.

    Each of the ``processes`` on this machine holds all ``needed`` bytes.
    """
    each = f" in each of {processes} processes" if processes > 1 else ""
    listener.note(f"{what}: {needed / 1e6:,.0f} MB of memory{each}")
    available = psutil.virtual_memory().available
    if needed * processes > 0.8 * available:
        raise SettingsError(
            f"{what} need {needed * processes / 1e9:.1f} GB of memory, but {available / 1e9:.1f} GB are free. "
            "Use --cache disk, lower --image-size or make fewer bags."
        )


def require_disk(needed: int, what: str, path: Path, listener: Listener) -> None:
    """Report how much space the cells (``what``) take in the file ``path``. Raises `SettingsError` if too little is free."""
    listener.note(f"{what}: {needed / 1e6:,.0f} MB on disk, in {path}")
    require_disk_space(needed, what, path.parent, "Lower --image-size, make fewer bags")


def measured_memory(processes: int) -> Memory:
    """The peak memory of ``processes`` processes, each assumed to equal this one's peak, and the free memory."""
    if sys.platform == "win32":
        held = psutil.Process().memory_info().peak_wset
    else:
        import resource

        # macOS reports bytes, Linux KiB.
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Memory(held * processes, psutil.virtual_memory().available)


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for the next step. Only glibc is affected.

    By default glibc returns blocks of 32 MB and more to the system at once. Every step then faults in their pages
    again, which takes a tenth to a quarter of a step at 64 and 224 pixels.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)


_BLOCK = 64
_BLOCKS_AT_ONCE = 32


@dataclass(frozen=True)
class TrainingCells:
    """The cells of the training bags, without instance labels.

    Args:
        pixels: uint8 (N, S, S, 3).
        is_positive: bool (N,), the label of each cell's slide.
        bag: int64 (N,), the number of each cell's bag.
        patient: int64 (N,), the number of each cell's patient. A bag of unknown patient counts as its own patient.
        problems: the cells that could not be read.
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


def bytes_needed(rows: tuple[BagRow, ...], image_size: int, draw: Draw = ALL) -> int:
    """Size in memory of the decoded cells drawn from these bags, in bytes."""
    return count(rows, draw) * 3 * image_size**2


def count(rows: tuple[BagRow, ...], draw: Draw) -> int:
    """Number of cells drawn from these bags."""
    return sum(draw.count(row.n_instances) for row in rows)


def load_training_cells(
    manifest: Manifest, rows: tuple[BagRow, ...], transform: CellTransform, listener: Listener, draw: Draw = ALL
) -> TrainingCells:
    """Decode the cells drawn from the bags.

    Raises:
        BagFileError: a label has no bag, or a bag differs from the one that the manifest lists.
    """
    pixels = np.empty((count(rows, draw), transform.image_size, transform.image_size, 3), np.uint8)
    bag, problems = fill_cells(pixels, manifest, rows, transform, listener, draw)
    return assemble(torch.from_numpy(pixels), bag, problems, manifest, rows)


def fill_cells(
    pixels: Any,
    manifest: Manifest,
    rows: tuple[BagRow, ...],
    transform: CellTransform,
    listener: Listener,
    draw: Draw = ALL,
) -> tuple[Tensor, tuple[Problem, ...]]:
    """Decode the cells drawn from the bags on all cores into a NumPy or HDF5 array, uint8 (N, S, S, 3).

    Returns:
        The index into ``rows`` of each readable cell's bag, int64 (number of readable cells,), and the unreadable cells.

    Raises:
        BagFileError: a label has no bag, or a bag differs from the one that the manifest lists.
    """
    for label, name in ((0, "negative"), (1, "positive")):
        if not any(row.label == label for row in rows):
            raise BagFileError(f"{manifest.folder}: no {name} training bag; pretraining needs both labels.")
    bags: list[Tensor] = []
    problems: list[Problem] = []
    filled = 0
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for number, row in enumerate(listener.track(rows, "decoding cells", unit="bags")):
            bag = open_unaltered(manifest, row)
            for block, unreadable in _decoded(bag, row.bag_id, draw, transform, pool):
                pixels[filled : filled + len(block)] = block
                bags.append(torch.full((len(block),), number))
                filled += len(block)
                problems += unreadable
    return torch.cat(bags), tuple(problems)


def _decoded(
    bag: Bag, bag_id: str, draw: Draw, transform: CellTransform, pool: ThreadPoolExecutor
) -> Iterator[tuple[np.ndarray, list[Problem]]]:
    indices = draw.indices(bag_id, len(bag)).tolist()
    blocks = [indices[start : start + _BLOCK] for start in range(0, len(indices), _BLOCK)]
    for first in range(0, len(blocks), _BLOCKS_AT_ONCE):  # limits the memory that a huge bag takes
        group = blocks[first : first + _BLOCKS_AT_ONCE]
        encoded = [[image for start, stop in _runs(block) for image in bag.images(start, stop)] for block in group]
        names = [[f"{bag_id}/{bag.instance_ids[i]}" for i in block] for block in group]
        for block, _, unreadable in pool.map(decode_cells, encoded, names, repeat(transform)):
            yield block, unreadable


def _runs(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Start and stop of each run of consecutive numbers in ascending ``indices``."""
    breaks = [i for i in range(1, len(indices)) if indices[i] != indices[i - 1] + 1]
    for first, last in zip([0, *breaks], [*breaks, len(indices)], strict=True):
        yield indices[first], indices[last - 1] + 1


def assemble(
    pixels: Tensor, bag: Tensor, problems: tuple[Problem, ...], manifest: Manifest, rows: tuple[BagRow, ...]
) -> TrainingCells:
    """Combine pixels with the result of `fill_cells`. Raises `BagFileError` if a label has fewer than two cells."""
    of_bag = torch.tensor([row.label == 1 for row in rows])
    names = [row.patient_id or f"bag:{row.bag_id}" for row in rows]
    number_of = {name: number for number, name in enumerate(dict.fromkeys(names))}
    patient = torch.tensor([number_of[name] for name in names])
    cells = TrainingCells(pixels[: len(bag)], of_bag[bag], bag, patient[bag], problems)
    for label, name in ((False, "negative"), (True, "positive")):
        if int((cells.is_positive == label).sum()) < 2:
            raise BagFileError(f"{manifest.folder}: fewer than two readable cells in {name} training bags.")
    return cells


SCHEMA = "cytomil.cells/3"


def cell_cache_path(out: Path, data: str, transform: CellTransform, draw: Draw = ALL) -> Path:
    """Path of the decoded cells for runs that write the bundle ``out`` and use bags with fingerprint ``data``."""
    return out.parent / "cache" / f"cells-{sha256_of_json([SCHEMA, data, transform.sha256, asdict(draw)])[:16]}.h5"


def write_cell_cache(
    path: Path,
    manifest: Manifest,
    rows: tuple[BagRow, ...],
    transform: CellTransform,
    listener: Listener,
    draw: Draw = ALL,
) -> None:
    """Decode the cells drawn from the bags into ``path``, completely or not at all.

    Memory holds a few blocks of cells at a time.
    """
    shape = (count(rows, draw), transform.image_size, transform.image_size, 3)
    with replacing(path) as partial, writing_hdf5(partial) as (file, _):
        pixels = file.create_dataset("pixels", shape, np.uint8)  # not chunked: open_cell_cache maps it
        bag, problems = fill_cells(pixels, manifest, rows, transform, listener, draw)
        file["bag"] = bag.numpy()
        file.attrs["problems"] = json.dumps([vars(problem) for problem in problems])
        file.attrs["schema"] = SCHEMA


def open_cell_cache(path: Path, manifest: Manifest, rows: tuple[BagRow, ...]) -> TrainingCells:
    """Map the cells of these bags in ``path``. Raises `CytomilError` if the file is damaged."""
    remedy = "Delete it; the next run writes it again."
    with reading_sealed(path, CytomilError, remedy) as file:
        file.require_schema(SCHEMA, "a file of decoded cells")
        stored = file.dataset("pixels", "whole numbers", (None, None, None, 3))
        shape, offset = stored.shape, stored.offset
        bag = torch.from_numpy(file.dataset("bag", "whole numbers", (None,)).read())
        encoded = file.attribute("problems", str)
    try:
        problems = tuple(Problem(**problem) for problem in json.loads(encoded))
        mapped = np.memmap(path, np.uint8, "r", offset or 0, shape)
    except (OSError, ValueError, TypeError) as error:
        raise CytomilError(f"{path} is damaged ({error}). {remedy}") from None
    with warnings.catch_warnings():
        # PyTorch has no read-only tensors and warns about the mapping. Nothing writes to the training cells.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        pixels = torch.from_numpy(mapped)
    return assemble(pixels, bag, problems, manifest, rows)
