"""What readers' verdicts on the top cells of each training slide add to the default model, on real cells.

A model is fitted to slide labels. A reader, here the cells' own labels, judges its 20 most suspicious cells of each training
slide, and the model is fitted again with these verdicts. Both are judged on the same test bags; see `recipe`.
"""

from __future__ import annotations

import argparse
import os
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
from cytomil.threads import usable_cores

FIGURES = {"cells": "cells", "recall_at_40pct": "R@40 %", "recall_at_5pct": "R@5 %", "bags": "bags"}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--work", type=Path, default=Path("runs/recipe"), help="folder of features, as `recipe` keeps them"
    )
    parser.add_argument("--tasks", nargs="+", default=["mixed:0.05", "four kinds:0.1"], metavar="NAME:RATE")
    parser.add_argument("--splits", nargs="+", type=int, default=list(range(5, 15)), help="seeds of the splits")
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
        runs = list(pool.map(partial(_run, options.work, options.top), jobs))
    rows = []
    for task, rate in dict.fromkeys((run["task"], run["rate"]) for run in runs):
        own = [run for run in runs if (run["task"], run["rate"]) == (task, rate)]
        for what, values in (
            ("slide labels", {key: [run["before"][key] for run in own] for key in FIGURES}),
            ("with feedback", {key: [run["after"][key] for run in own] for key in FIGURES}),
            ("difference", {key: [100 * (run["after"][key] - run["before"][key]) for run in own] for key in FIGURES}),
        ):
            shown = {short: interval(values[key], what == "difference") for key, short in FIGURES.items()}
            rows.append({"task": task, "rate": f"{rate:.0%}", "model": what} | shown)
    confirmed = mean(run["confirmed"] for run in runs)
    told = f"{len(options.splits)} splits, in percent and points. On average {confirmed:.0f} cells were confirmed."
    return Measured({"runs": runs}, (Table.of(*rows), told))


def _features(work: Path, task: str) -> Cells:
    data = TASKS[task].data
    return embed_cells(data, work / "default" / data.name, RECIPES["default"], leave_out=(PLATELETS,))


def _run(work: Path, top: int, job: tuple[str, float, int]) -> dict[str, Any]:
    name, rate, split = job
    task, cells = TASKS[name], _features(work, name)
    normal, abnormal = pools(cells, task)
    bags = draw(normal, abnormal, task.bag_size or 0, rate, split)
    training, tests = bags[:TRAIN_BAGS], bags[TRAIN_BAGS:]
    unseen = np.setdiff1d(abnormal, np.concatenate([bag.cells for bag in bags]))
    scorer = fit(cells, training, DEFAULT_AGGREGATOR, split)
    judged = [_verdicts(bag, scorer(cells.values[bag.cells])[1], top) for bag in training]
    again = fit(cells, training, DEFAULT_AGGREGATOR, split, judged)
    figures = [judge(cells, one, tests, unseen, split) for one in (scorer, again)]
    confirmed = sum(int((verdicts == 1).sum()) for verdicts in judged)
    return {
        "task": name,
        "rate": rate,
        "split": split,
        "before": figures[0],
        "after": figures[1],
        "confirmed": confirmed,
    }


def _verdicts(bag: Drawn, scores: np.ndarray, top: int) -> np.ndarray:
    verdicts = np.full(len(bag.cells), -1, np.int8)
    shown = np.argsort(-scores)[:top]
    verdicts[shown] = bag.abnormal[shown]
    return verdicts
