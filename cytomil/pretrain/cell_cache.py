"""Decoded training cells in a file: for more cells than fit in memory, for many processes, for the next run.

One HDF5 file beside the bundle, ``cache/cells-….h5``, named by the bags and the cell transform. Its pixels lie in one
piece and are mapped into memory, so that the operating system keeps what fits and all processes share it.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import torch

from cytomil.bags.draw import ALL, Draw
from cytomil.bags.manifest import BagRow, Manifest
from cytomil.encoders.transform import CellTransform
from cytomil.errors import CytomilError
from cytomil.files import replacing, sha256_of_json
from cytomil.hdf5 import HDF5_ERRORS
from cytomil.pretrain.cells import TrainingCells, assemble, count, fill_cells
from cytomil.progress import Listener, Problem

SCHEMA = "cytomil.cells/2"


def cell_cache_path(out: Path, data: str, transform: CellTransform, draw: Draw = ALL) -> Path:
    """Where runs that write the bundle ``out`` keep the decoded cells drawn of the bags with fingerprint ``data``."""
    return out.parent / "cache" / f"cells-{sha256_of_json([SCHEMA, data, transform.sha256, asdict(draw)])[:16]}.h5"


def write_cell_cache(
    path: Path,
    manifest: Manifest,
    rows: tuple[BagRow, ...],
    transform: CellTransform,
    listener: Listener,
    draw: Draw = ALL,
) -> None:
    """Decode the cells drawn of the bags into ``path``, whole or not at all; memory holds some blocks of cells at a time."""
    shape = (count(rows, draw), transform.image_size, transform.image_size, 3)
    with replacing(path) as partial, h5py.File(partial, "w") as file:
        pixels = file.create_dataset("pixels", shape, np.uint8)  # not chunked, so that it can be mapped
        bag, problems = fill_cells(pixels, manifest, rows, transform, listener, draw)
        file["bag"] = bag.numpy()
        file.attrs["problems"] = json.dumps([vars(problem) for problem in problems])
        file.attrs["schema"] = SCHEMA


def open_cell_cache(path: Path, manifest: Manifest, rows: tuple[BagRow, ...]) -> TrainingCells:
    """The cells of these bags in ``path``, mapped. Raises `CytomilError` where the file is damaged."""
    try:
        with h5py.File(path) as file:
            if file.attrs["schema"] != SCHEMA:
                raise ValueError("another schema")
            shape, offset = file["pixels"].shape, file["pixels"].id.get_offset()
            bag = torch.from_numpy(file["bag"][:])
            problems = tuple(Problem(**problem) for problem in json.loads(file.attrs["problems"]))
        mapped = np.memmap(path, np.uint8, "r", offset, shape)
    except HDF5_ERRORS as error:
        raise CytomilError(f"{path} is damaged ({error}). Delete it; it is made again.") from None
    with warnings.catch_warnings():
        # PyTorch has no read-only tensors and warns of them; nothing writes to the training cells.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        pixels = torch.from_numpy(mapped)
    return assemble(pixels, bag, problems, manifest, rows)
