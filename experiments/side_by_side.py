"""A whole grid without DVC, several cells at a time, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from cytomil.errors import CytomilError
from cytomil.experiments.runs import Cell
from cytomil.threads import usable_cores
from experiments.grid import Grid


def run_all(grid: Grid, jobs: int) -> list[Cell]:
    """Make the bags and run every cell that has no record yet, in the grid's order; returns the cells that failed.

    The cores are shared out among the ``jobs`` processes; the number of threads changes a cell's figures by rounding alone.

    Raises `CytomilError` where bags cannot be made.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, usable_cores() // jobs))}
    for rate_and_seed in dict.fromkeys((cell.witness_rate, cell.seed) for cell in grid.cells):
        if subprocess.run(_line(grid, "bags", Cell("", *rate_and_seed)), check=False).returncode:
            raise CytomilError(f"the bags of {grid.folder} could not be made; the line above says why.")
    with ThreadPoolExecutor(jobs) as pool:
        states = list(pool.map(partial(_run, grid, environment), grid.cells))
    return [cell for cell, state in zip(grid.cells, states, strict=True) if state]


def _run(grid: Grid, environment: dict[str, str], cell: Cell) -> int:
    return subprocess.run(_line(grid, "run", cell), env=environment, check=False).returncode


def _line(grid: Grid, verb: str, cell: Cell) -> Sequence[str]:
    where = ("--witness-rate", f"{cell.witness_rate:g}", "--seed", str(cell.seed))
    method = ("--method", cell.name) if cell.name else ()
    return (sys.executable, "-m", "experiments", verb, str(grid.folder), *where, *method)
