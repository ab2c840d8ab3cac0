"""fit-mil: seconds on one core by the size of bags, and time and memory of a cohort that does not fit in memory.

Features are synthetic. In half of the bags one cell in fifty is shifted. Each fit runs the command in a separate process,
and the peak is its largest resident memory. The small fits use one core, the cohort all of them.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import child
from bench.tables import Measured, Table

_GROUPS = (72, 336, 576, 960)
_WITNESSES = 50


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--small", type=int, nargs="*", default=[100, 1_000], help="cells per bag, of 18 bags")
    parser.add_argument("--slides", type=int, default=200, help="bags of the cohort; 0: no cohort")
    parser.add_argument("--cells", type=int, default=50_000, help="cells per bag of the cohort")
    parser.add_argument(
        "--share", type=float, default=0.5, help="fraction of the default layer's 1,944 columns that the cohort has"
    )
    parser.add_argument("--aggregator", default="self-paced")


def measure(options: argparse.Namespace) -> Measured:
    rows = [fit(18, size, 1.0, options.aggregator, cores=1) for size in options.small]
    if options.slides:
        rows.append(fit(options.slides, options.cells, options.share, options.aggregator))
    return Measured({"fits": rows}, (Table.of(*map(_shown, rows)),))


def fit(n_bags: int, size: int, fraction: float, aggregator: str, cores: int | None = None) -> dict[str, Any]:
    """Write features, fit to them on ``cores`` cores, and measure time and memory."""
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        columns, written, _ = write_cohort(root, n_bags, size, fraction)
        line: list[str | Path] = [
            "--features",
            root / "features",
            "--encoder",
            root / "encoder",
            "--out",
            root / "model",
        ]
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, sorted(allowed)[:cores])
        try:
            done = child.cytomil("fit-mil", "--aggregator", aggregator, *line)
        finally:
            os.sched_setaffinity(0, allowed)
    return {
        "bags": n_bags,
        "cells": size,
        "columns": columns,
        "cores": cores or len(allowed),
        "gb": written / 1e9,
        "seconds": done.seconds,
        "cpu_seconds": done.cpu_seconds,
        "peak_gb": done.peak_mb / 1000,
    }


def write_cohort(root: Path, n_bags: int, size: int, fraction: float) -> tuple[int, int, float]:
    """Write the features of a cohort to ``root``. Returns the columns, the bytes on disk, and the seconds of writing."""
    import torch

    from cytomil.encoders.architecture import Architecture, Encoder
    from cytomil.encoders.bundle import save_bundle
    from cytomil.encoders.transform import CellTransform
    from cytomil.features.cache import EmbeddedBlock, FeatureKey, write_features
    from cytomil.features.embed import preparation_sha256, stored_layer
    from cytomil.features.index import FeatureIndex, IndexRow, write_index

    torch.manual_seed(0)
    metadata = {"method": "none", "synthetic": True, "data": {"sources": ["synthetic"]}, "history": []}
    bundle = save_bundle(root / "encoder", Encoder(Architecture(stem="small")), CellTransform(32, 0.8), metadata)
    prepared = preparation_sha256(stored_layer("h"), bundle.transform.sha256)
    key = FeatureKey("0" * 64, bundle.sha256, "h", prepared, "eager", "float16", "2")
    groups = tuple(max(1, round(width * fraction)) for width in _GROUPS)
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(64, sum(groups))).astype(np.float32)
    common = rng.normal(size=(size, 64)).astype(np.float32) @ mixing
    common += rng.normal(size=common.shape).astype(np.float32)
    (root / "features").mkdir()
    rows, written, started = [], 0, time.perf_counter()
    for i in range(n_bags):
        name = f"slide-{i:03d}"
        # Every slide has the same cells in another order, slightly shifted. Drawing new ones would take longer than the fit.
        values = np.roll(common, int(rng.integers(size)), axis=0) + rng.normal(scale=0.1, size=common.shape[1])
        if i % 2:
            values[::_WITNESSES] += 2
        ids = [f"{j:09d}" for j in range(size)]
        block = EmbeddedBlock(ids, np.zeros((size, 2), np.int64), values.astype(np.float16))
        path = root / "features" / f"{name}.h5"
        write_features(path, name, key, values.shape[1], [block], groups=groups)
        written += path.stat().st_size
        rows.append(IndexRow(name, path.name, name, "train", i % 2, size, key.bag_sha256))
    write_index(FeatureIndex(root / "features", tuple(rows)))
    return sum(groups), written, time.perf_counter() - started


def _shown(row: dict[str, Any]) -> dict[str, str]:
    return {
        "bags": f"{row['bags']:,}",
        "cells per bag": f"{row['cells']:,}",
        "columns": f"{row['columns']:,}",
        "on disk, GB": f"{row['gb']:.2f}",
        "cores": str(row["cores"]),
        "seconds": f"{row['seconds']:.1f}",
        "of processor": f"{row['cpu_seconds']:.1f}",
        "peak, GB": f"{row['peak_gb']:.2f}",
    }
