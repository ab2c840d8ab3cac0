"""`python -m experiments inputs|bags|run FOLDER …`: what a stage of a grid's dvc.yaml does; `all FOLDER`: all of it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cytomil.errors import CytomilError
from cytomil.experiments.planned import do_run, is_done
from cytomil.experiments.runs import Cell
from cytomil.progress import Silent
from cytomil.threads import let_waiting_threads_sleep
from experiments.grid import Grid, read_grid


def main() -> int:
    """Exit status 0: done, or done before; 1: failed, and why is in the cell's record and on standard error."""
    let_waiting_threads_sleep()
    parser = argparse.ArgumentParser(prog="python -m experiments", description="One stage of a grid, see README.md.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    inputs = verbs.add_parser("inputs", help="write a hash of the cells, so that DVC sees when they change")
    inputs.add_argument("folder", type=Path, help="folder of the grid, such as experiments/cpu")
    bags = verbs.add_parser("bags", help="make the bags that all methods of a witness rate and seed share")
    run = verbs.add_parser("run", help="run one cell, unless its record says that it is done")
    for verb in (bags, run):
        verb.add_argument("folder", type=Path, help="folder of the grid, such as experiments/cpu")
        verb.add_argument("--witness-rate", type=float, required=True)
        verb.add_argument("--seed", type=int, required=True)
    every = verbs.add_parser("all", help="make all bags and run every cell that has no record, several at a time")
    every.add_argument("folder", type=Path, help="folder of the grid, such as experiments/cpu")
    every.add_argument("--jobs", type=int, default=1, help="cells at a time")
    run.add_argument("--method", required=True, help="a name among the grid's methods")
    given = parser.parse_args()
    try:
        grid = read_grid(given.folder)
        if given.verb == "all":
            return _all(grid, given.jobs)
        if given.verb == "inputs":
            return _inputs(grid)
        if given.verb == "bags":
            return _bags(grid, Cell("", round(given.witness_rate, 6), given.seed))
        return _run(grid, Cell(given.method, round(given.witness_rate, 6), given.seed))
    except CytomilError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _all(grid: Grid, jobs: int) -> int:
    from experiments.side_by_side import run_all

    failed = run_all(grid, max(1, jobs))
    for cell in failed:
        print(f"{grid.name_of(cell)}: failed, see {grid.record_of(cell)}", file=sys.stderr)
    return 1 if failed else 0


def _inputs(grid: Grid) -> int:
    from cytomil.bags.make import write_fingerprint

    write_fingerprint(grid.work / "inputs.json", grid.settings_of(grid.cells[0]).make_bags, Silent())
    return 0


def _bags(grid: Grid, cell: Cell) -> int:
    from cytomil.bags.make import make_bags

    any_method = Cell(grid.methods[0], cell.witness_rate, cell.seed)
    made = make_bags(grid.settings_of(any_method).make_bags, Silent())
    print(f"{len(made.rows)} bags in {made.folder}", file=sys.stderr)
    return 0


def _run(grid: Grid, cell: Cell) -> int:
    name = grid.name_of(cell)
    if is_done(grid.planned(cell)):
        print(f"{name}: done before", file=sys.stderr)
        return 0
    record = do_run(grid.planned(cell), Silent())
    if record["failed"]:
        print(f"{name}: failed: {record['failed']}", file=sys.stderr)
        return 1
    print(f"{name}: {record['seconds']} seconds", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
