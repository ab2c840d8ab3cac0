"""Chunks and compression of feature caches and bag files: speed of writing and reading, and size.

Feature caches contain embeddings of real cells (--features), or ReLU of random numbers, which compress about as poorly.
They are written in blocks of 256 cells, as by embed, and read as a whole. Bag files contain unchanged JPEGs of variable
length, written and read 64 at a time. Layouts are timed alternately. Files are in the operating system's cache, so a slow
disk would favour compression more than these figures.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bench.data import BLOOD_SMEAR, blood_smear_bags, require_cells
from bench.tables import Measured, Table
from bench.timing import Timing, interleaved
from cytomil.bags.bag_file import CHUNK_CELLS as BAG_CHUNK
from cytomil.bags.bag_file import open_bag
from cytomil.bags.manifest import read_manifest
from cytomil.features.cache import CHUNK_CELLS as FEATURE_CHUNK
from cytomil.features.index import read_index

_WRITTEN, _PIECE = 256, 64
_COMPRESSIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "lzf, shuffled": {"compression": "lzf", "shuffle": True},
    "gzip 1, shuffled": {"compression": "gzip", "compression_opts": 1, "shuffle": True},
}
_FEATURE_CHUNKS = (64, 256, 1024, 8192)
_BAG_CHUNKS = (16, 64, 256, 1024)
_DIM = 512


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="?", type=Path, default=BLOOD_SMEAR, help="class folders of cells")
    parser.add_argument("--features", type=Path, help="folder of feature caches whose values are used")
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)


def measure(options: argparse.Namespace) -> Measured:
    require_cells(options.data)
    results: dict[str, Any] = {}
    parts: list[str | Table] = []
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        for dtype in ("float32", "float16"):
            values = embeddings(options.features, options.cells).astype(dtype)
            layouts = {
                f"{chunk} × {name}": (chunk, kept)
                for chunk, (name, kept) in product(_FEATURE_CHUNKS, _COMPRESSIONS.items())
            }
            text = f"Feature cache, {len(values):,} × {values.shape[1]} {dtype}; in use: {FEATURE_CHUNK} × none"
            results[dtype] = compare(root, layouts, write_values, read_values, values, values.nbytes, options.repeats)
            parts += [text, shown(results[dtype])]
        cells = encoded_cells(options.data, root / "bags", options.cells)
        size = sum(map(len, cells))
        layouts = {f"{chunk} × none": (chunk, {}) for chunk in _BAG_CHUNKS}
        text = f"Bag file, {len(cells):,} JPEGs of {size / len(cells) / 1000:.1f} kB; in use: {BAG_CHUNK} × none"
        results["bag"] = compare(root, layouts, write_cells, read_cells, cells, size, options.repeats)
        parts += [text, shown(results["bag"])]
    return Measured(results, tuple(parts))


def embeddings(folder: Path | None, n: int) -> np.ndarray:
    """Embeddings (n, D), float32: those of the caches in ``folder``, repeated, or random ones."""
    if folder is None:
        return np.maximum(np.random.default_rng(0).normal(size=(n, _DIM)), 0).astype(np.float32)
    index = read_index(folder)
    values = np.concatenate([features.load() for split in ("train", "test") for _, features in index.open(split)])
    return values[np.arange(n) % len(values)]


def encoded_cells(data: Path, bags: Path, n: int) -> list[bytes]:
    """``n`` JPEGs, which repeat those of 2,000 cells."""
    manifest = read_manifest(blood_smear_bags(data, bags, 1_000, train_bags=2))
    cells = [cell for row in manifest.rows for cell in open_bag(manifest.file_of(row)).images()]
    return [cells[i % len(cells)] for i in range(n)]


def compare(
    root: Path,
    layouts: dict[str, tuple[int, dict[str, Any]]],
    write: Callable[..., None],
    read: Callable[[Path], None],
    content: Any,
    n_bytes: int,
    repeats: int,
) -> dict[str, dict[str, Any]]:
    """Layout → megabytes of content written and read per second, and the file's size as a fraction of the content's."""
    files = {name: root / f"{i}.h5" for i, name in enumerate(layouts)}

    def writer(name: str) -> Callable[[], None]:
        return lambda: write(files[name], content, *layouts[name])

    def reader(name: str) -> Callable[[], None]:
        return lambda: read(files[name])

    written = interleaved({name: writer(name) for name in layouts}, repeats)
    loaded = interleaved({name: reader(name) for name in layouts}, repeats)
    sizes = {name: files[name].stat().st_size / n_bytes for name in layouts}
    return {
        name: {"write": _rate(written[name], n_bytes), "read": _rate(loaded[name], n_bytes), "size": sizes[name]}
        for name in layouts
    }


def write_values(path: Path, values: np.ndarray, chunk: int, kept: dict[str, Any]) -> None:
    with h5py.File(path, "w") as file:
        dim = values.shape[1]
        data = file.create_dataset(
            "features", (0, dim), values.dtype, maxshape=(None, dim), chunks=(chunk, dim), **kept
        )
        for start in range(0, len(values), _WRITTEN):
            block = values[start : start + _WRITTEN]
            data.resize(start + len(block), axis=0)
            data[start:] = block
    _to_disk(path)


def read_values(path: Path) -> None:
    with h5py.File(path, "r") as file:
        _ = file["features"][:]


def write_cells(path: Path, cells: list[bytes], chunk: int, kept: dict[str, Any]) -> None:
    with h5py.File(path, "w") as file:
        data = file.create_dataset("images", (0,), h5py.vlen_dtype(np.uint8), maxshape=(None,), chunks=(chunk,), **kept)
        for start in range(0, len(cells), _PIECE):
            block = cells[start : start + _PIECE]
            data.resize(start + len(block), axis=0)
            for i, cell in enumerate(block, start):
                data[i] = np.frombuffer(cell, np.uint8)
    _to_disk(path)


def read_cells(path: Path) -> None:
    with h5py.File(path, "r") as file:
        for start in range(0, len(file["images"]), _PIECE):
            _ = file["images"][start : start + _PIECE]


def shown(found: dict[str, dict[str, Any]]) -> Table:
    return Table.of(
        *(
            {
                "cells per chunk × compression": name,
                "write, MB/s": f"{one['write']['median']:,.0f}",
                "read, MB/s": f"{one['read']['median']:,.0f}",
                "size": f"{one['size']:.0%}",
            }
            for name, one in found.items()
        )
    )


def _to_disk(path: Path) -> None:
    """Wait for the disk, as cytomil does for every file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _rate(timing: Timing, n_bytes: int) -> dict[str, float]:
    return dict(vars(timing.per_second(n_bytes / 1e6)))
