"""Time and memory of every verb on real blood-smear cells.

Each verb runs as a process of its own; wall time and peak resident memory are the operating system's account of it. The
machine's float32 matrix-product peak is measured in the same run, to hold the encoder's share of it against. make-bags and
embed are run on a quarter of the cells too: their memory must not grow with the number of cells.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.child import cytomil
from bench.data import BLOOD_SMEAR, BLOOD_SMEAR_CLASSES, require_cells
from bench.machine import encoder_gflop, matmul_peak
from bench.tables import Measured, Table


@dataclass(frozen=True)
class Run:
    """One verb on ``cells`` cells: wall seconds, cells or views a second, peak resident memory in MB."""

    verb: str
    cells: int
    seconds: float
    per_second: float
    peak_mb: float


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="?", type=Path, default=BLOOD_SMEAR, help="class folders of cells")
    parser.add_argument("--image-size", type=int, default=32, help="pixels")
    parser.add_argument("--epochs", type=int, default=1)


def measure(options: argparse.Namespace) -> Measured:
    require_cells(options.data)
    with tempfile.TemporaryDirectory() as folder:
        runs = walk(options.data, Path(folder), options.image_size, options.epochs)
    peak, flops = matmul_peak(), encoder_gflop(options.image_size)
    results = {"runs": [asdict(run) for run in runs], "matmul_gflops": peak, "encoder_gflop_per_image": flops}
    bound = (
        f"{options.image_size} px; matmul peak {peak:,.0f} GFLOP/s; one forward pass {flops:.3f} GFLOP: "
        f"{peak / flops:,.0f} cells/s at most"
    )
    return Measured(results, (bound, Table.of(*map(row, runs))))


def row(run: Run) -> dict[str, str]:
    return {
        "verb": run.verb,
        "cells": f"{run.cells:,}",
        "seconds": f"{run.seconds:.1f}",
        "cells/s": f"{run.per_second:,.0f}",
        "peak memory, MB": f"{run.peak_mb:,.0f}",
    }


def walk(data: Path, root: Path, image_size: int, epochs: int) -> list[Run]:
    runs = []
    for name, train, test in (("small", 6, 2), ("full", 20, 5)):
        where = root / name
        bags, encoder, features, model = (where / part for part in ("bags", "encoder", "features", "model"))
        n_train, n_all = train * 200, (train + test) * 200
        shape = ["--bag-size", "200", "--train-bags", str(train), "--test-bags", str(test)]
        runs.append(run(["make-bags", str(data), *BLOOD_SMEAR_CLASSES, *shape, "--out", str(bags)], n_all))
        line = ["pretrain", "--bags", str(bags), "--out", str(encoder), "--image-size", str(image_size)]
        line += ["--arch", "resnet18", "--weights", "none"]
        runs.append(run([*line, "--epochs", str(epochs)], n_train * epochs))
        runs.append(run(["embed", "--bags", str(bags), "--encoder", str(encoder), "--out", str(features)], n_all))
        line = ["fit-mil", "--features", str(features), "--encoder", str(encoder), "--out", str(model)]
        runs.append(run([*line, "--epochs", "20"], n_train))
        line = ["evaluate", "--features", str(features), "--model", str(model), "--bags", str(bags)]
        runs.append(run([*line, "--out", str(where / "reports")], test * 200))
        runs.append(run(["rank", str(bags), "--model", str(model), "--out", str(where / "triage")], n_all))
    return runs


def run(line: list[str], cells: int) -> Run:
    child = cytomil(*line)
    return Run(line[0], cells, child.seconds, cells / child.seconds, child.peak_mb)
