"""What readers' verdicts on the top cells of each training slide add to the default model, on real cells.

A model is fitted to slide labels. A reader, here the cells' own labels, judges its 20 most suspicious cells of each training
slide, and the model is fitted again with these verdicts. Both are judged on the same test bags; see `recipe`. With --shown,
choices of the cells that are judged are compared; the number of verdicts is the same.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from bench.cell_features import Cells, embed_cells
from bench.data import require_cells
from bench.recipe import (
    DEFAULT_AGGREGATOR,
    PLATELETS,
    RECIPES,
    TASKS,
    TRAIN_BAGS,
    Drawn,
    draw,
    fit,
    interval,
    judge,
    pools,
    task_and_rates,
)
from bench.tables import Measured, Table
from cytomil.mil.bags import informative_cells
from cytomil.threads import usable_cores

SHOWN = {
    "top": "the most suspicious cells of each slide",
    "learn": "half of them, and as many cells of `cytomil rank --learn`",
    "positive": "twice as many of the most suspicious cells, but of positive slides only",
}
FIGURES = {"cells": "cells", "recall_at_40pct": "R@40 %", "recall_at_5pct": "R@5 %", "bags": "bags"}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--work", type=Path, default=Path("runs/recipe"), help="folder of features, as `recipe` keeps them"
    )
    parser.add_argument("--tasks", nargs="+", default=["mixed:0.05", "four kinds:0.1"], metavar="NAME:RATE")
    parser.add_argument("--splits", nargs="+", type=int, default=list(range(5, 15)), help="seeds of the splits")
    told = "; ".join(f"{name}: {what}" for name, what in SHOWN.items())
    parser.add_argument(
        "--shown", nargs="+", choices=list(SHOWN), default=["top"], help=f"which cells are judged. {told}"
    )
    parser.add_argument("--top", type=int, default=20, help="cells that are judged per training slide")


def measure(options: argparse.Namespace) -> Measured:
    jobs = [
        (task, rate, split) for one in options.tasks for task, rate in task_and_rates(one) for split in options.splits
    ]
    for task, *_ in jobs:
        require_cells(TASKS[task].data)
        _features(options.work, task)
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(usable_cores(), get_context("spawn")) as pool:
        runs = list(pool.map(partial(_run, options.work, options.top, tuple(options.shown)), jobs))
    rows = []
    for task, rate in dict.fromkeys((run["task"], run["rate"]) for run in runs):
        own = [run for run in runs if (run["task"], run["rate"]) == (task, rate)]
        first, *others = options.shown
        models = ["slide labels", *options.shown]
        pairs = [(first, "slide labels"), *((name, first) for name in others)]
        for name in models:
            shown = {short: interval([run[name][key] for run in own]) for key, short in FIGURES.items()}
            rows.append({"task": task, "rate": f"{rate:.0%}", "model": name} | shown)
        for name, base in pairs:
            shown = {
                short: interval([100 * (run[name][key] - run[base][key]) for run in own], True)
                for key, short in FIGURES.items()
            }
            rows.append({"task": task, "rate": f"{rate:.0%}", "model": f"{name} − {base}"} | shown)
    confirmed = ", ".join(f"{mean(run[name]['confirmed'] for run in runs):.0f} with {name}" for name in options.shown)
    told = f"{len(options.splits)} splits, in percent and points. Cells confirmed on average: {confirmed}."
    return Measured({"runs": runs}, (Table.of(*rows), told))


def _features(work: Path, task: str) -> Cells:
    data = TASKS[task].data
    return embed_cells(data, work / "default" / data.name, RECIPES["default"], leave_out=(PLATELETS,))


def _run(work: Path, top: int, shown: Sequence[str], job: tuple[str, float, int]) -> dict[str, Any]:
    name, rate, split = job
    task, cells = TASKS[name], _features(work, name)
    normal, abnormal = pools(cells, task)
    bags = draw(normal, abnormal, task.bag_size or 0, rate, split)
    training, tests = bags[:TRAIN_BAGS], bags[TRAIN_BAGS:]
    unseen = np.setdiff1d(abnormal, np.concatenate([bag.cells for bag in bags]))
    scorer = fit(cells, training, DEFAULT_AGGREGATOR, split)
    found: dict[str, Any] = {"task": name, "rate": rate, "split": split}
    found["slide labels"] = judge(cells, scorer, tests, unseen, split)
    scores = [scorer(cells.values[bag.cells])[1] for bag in training]
    for which in shown:
        judged = [_verdicts(bag, own, top, which) for bag, own in zip(training, scores, strict=True)]
        again = fit(cells, training, DEFAULT_AGGREGATOR, split, judged)
        confirmed = sum(int((verdicts == 1).sum()) for verdicts in judged)
        found[which] = judge(cells, again, tests, unseen, split) | {"confirmed": confirmed}
    return found


def _verdicts(bag: Drawn, scores: np.ndarray, top: int, which: str) -> np.ndarray:
    verdicts = np.full(len(bag.cells), -1, np.int8)
    shown = _shown(scores, top, which, bag.label)
    verdicts[shown] = bag.abnormal[shown]
    return verdicts


def _shown(scores: np.ndarray, top: int, which: str, label: int) -> np.ndarray:
    """Indices of the cells that are judged; see `SHOWN`."""
    ordered = np.argsort(-scores, kind="stable")
    if which == "learn":
        n_top = top - top // 2
        return np.concatenate([ordered[:n_top], informative_cells(scores, n_top, top // 2)])
    if which == "positive":
        return ordered[: 2 * top * label]
    return ordered[:top]
