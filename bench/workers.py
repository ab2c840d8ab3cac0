"""rank over Ray: slides per hour of two workers compared with one, with one thread each, and identity of their worklists.

Cells are real blood-smear cells, with the default recipe. Every run is a separate process that includes the start of Ray
and Python. A worker has one core (`taskset`).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from bench import child
from bench.bag_size import make_model, write_large_bag
from bench.data import BLOOD_SMEAR, blood_smear_bags, require_cells
from bench.tables import Measured, SkippedError, Table

WORKLIST = "triage.csv"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, default=BLOOD_SMEAR, help="class folders of cells")
    parser.add_argument("--slides", type=int, default=12)
    parser.add_argument("--cells", type=int, default=2_000, help="cells per slide")
    parser.add_argument("--repeats", type=int, default=2)


def measure(options: argparse.Namespace) -> Measured:
    require_cells(options.data)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SkippedError("two workers need two cores")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        fitting = blood_smear_bags(options.data, root / "fitting", 100, train_bags=6)
        make_model(root, fitting, 128)
        slides = root / "slides"
        write_large_bag(fitting, slides, options.cells, options.slides)
        seconds: dict[int, list[float]] = {1: [], 2: []}
        worklists = set()
        for repeat in range(options.repeats):
            for n, measured in seconds.items():
                out = root / f"triage-{n}-{repeat}"
                measured.append(_rank(slides, root / "model", out, cores[:n]))
                worklists.add((out / WORKLIST).read_bytes())
    if len(worklists) != 1:
        raise SystemExit("one and two workers wrote different worklists")
    per_hour = {n: [options.slides * 3600 / one for one in all_] for n, all_ in seconds.items()}
    ratios = [two / one for one, two in zip(per_hour[1], per_hour[2], strict=True)]
    rows = [
        {"workers": str(n), "slides per hour, per round": " ".join(f"{rate:,.0f}" for rate in rates)}
        for n, rates in per_hour.items()
    ]
    text = f"{options.slides} slides of {options.cells:,} cells, {options.repeats} rounds. Worklists are identical."
    return Measured(
        {"slides_an_hour": per_hour, "ratios": ratios},
        (text, Table.of(*rows), f"Two to one: {', '.join(f'{ratio:.2f}' for ratio in ratios)}."),
    )


def _rank(slides: Path, model: Path, out: Path, cores: list[int]) -> float:
    held = ["taskset", "-c", ",".join(map(str, cores))]
    line = ["cytomil", "rank", str(slides), "--model", str(model), "--out", str(out), "--ray-address", "local"]
    one_thread = {"OMP_NUM_THREADS": "1"}
    return child.run([*held, sys.executable, "-m", *line], (0, 3), one_thread).seconds
