"""The default recipe, and variants of it, on five tasks of real cells with ten splits each, with intervals.

Every cell is embedded once. A split draws 18 training bags and 6 test bags, half of them positive, from the pool of cells.
It is fitted to slide labels only, and evaluated on 200 bags redrawn from cells outside the training bags. In the task
`people`, a bag is an infected person, and half of the people have no parasitised cells. People are held out in three folds.
`control` is the bag AUROC of the same people without any parasitised cells. Splits of one pool have cells in common. The
intervals (Student, 95 %, over splits) therefore show the variation with the draw, not with other slides.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np

from bench.cell_features import Cells, Recipe, cell, embed_cells
from bench.data import BLOOD_SMEAR, BONE_MARROW, PATIENTS, require_cells
from bench.tables import Measured, Table
from cytomil.mil.intervals import student_half_width
from cytomil.threads import usable_cores
from cytomil.triage.config import RankConfig

TRAIN_BAGS, TEST_BAGS, REDRAWN, PEOPLE_FOLDS = 18, 6, 200, 3
SPLITS = list(range(2, 12))
"""Splits 0, 1, 20 and 21 were used to choose the recipe, see docs/log/research-log.md, "A learner for frozen features"."""
CEILING = "told every cell"
"""Logistic regression on the instance labels of the training cells: an upper bound, not a method of the project."""
DEFAULT_AGGREGATOR = "self-paced"
ONE_ORIENTATION = "one orientation"
_RANK = RankConfig()
FIGURES = {
    "cells": "cells",
    "recall_at_40pct": "R@40 %",
    "recall_at_5pct": "R@5 %",
    "bags": "bags",
    "control": "control",
}
PLATELETS = "platelet"


@dataclass(frozen=True)
class Task:
    """The cells of a task and the drawing of its bags. If ``bag_size`` is None, a bag is a person."""

    data: Path
    normal: tuple[str, ...]
    abnormal: tuple[str, ...]
    bag_size: int | None
    rates: tuple[float, ...]


_FOUR_NORMAL = ("neutrophil", "eosinophil", "lymphocyte", "monocyte")
TASKS = {
    "mixed": Task(BLOOD_SMEAR, _FOUR_NORMAL, ("ig", "erythroblast", "basophil"), 360, (0.1, 0.05, 0.01, 0.005)),
    "paper-like": Task(
        BLOOD_SMEAR,
        _FOUR_NORMAL[:2],
        ("ig", "erythroblast", "basophil", "lymphocyte", "monocyte"),
        260,
        (0.1, 0.05, 0.01, 0.005),
    ),
    "LYT": Task(BONE_MARROW, ("LYT",), ("BLA", "PMO"), 21, (0.1, 0.05)),
    "four kinds": Task(BONE_MARROW, ("LYT", "NGS", "EOS", "MON"), ("BLA", "PMO"), 80, (0.1, 0.05, 0.01)),
    "people": Task(PATIENTS, ("uninfected",), ("parasitized",), None, (0.1, 0.05)),
}
RECIPES = {
    "default": Recipe(),
    "random weights": Recipe(("--method", "none", "--weights", "none", "--arch", "tf_efficientnet_lite0")),
    "last layer alone": Recipe(layer="h"),
    "stages 1, 2, 4": Recipe(layer="stages:1,2,4:mean,max,spread"),
    ONE_ORIENTATION: Recipe(orientations=1),
    "second look": Recipe(second_look=_RANK.second_look),
    "bf16": Recipe(precision="bf16"),
    "with morphology": Recipe(layer="morphology"),
    "dsvdd": Recipe(("--method", "dsvdd"), layer="z", trained=True),
    "droc": Recipe(("--method", "droc", "--epochs", "3"), layer="z", trained=True),
    "slam-ags on top": Recipe(("--method", "slam-ags"), trained=True),
}


class Drawn(NamedTuple):
    """A bag: positions of its cells (N,), which of them are abnormal, bool (N,), its label, and the person, if any."""

    cells: np.ndarray
    abnormal: np.ndarray
    label: int
    person: str = ""


Scorer = Callable[[np.ndarray], tuple[float, np.ndarray]]
"""Features (N, D) of a bag → the score of the bag and those of its cells, (N,)."""


@dataclass(frozen=True)
class Job:
    """One fit: a recipe and an aggregator on one split of a task."""

    task: str
    rate: float
    split: int
    recipe: str
    aggregator: str


def add_options(parser: argparse.ArgumentParser) -> None:
    work = "folder for features and figures; existing ones are reused, so use another folder for another version of the code"
    parser.add_argument("--work", type=Path, default=Path("runs/recipe"), help=work)
    tasks = f"of {', '.join(TASKS)}; NAME is a task at all its witness rates, NAME:0.05 at one"
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), metavar="NAME", help=tasks)
    parser.add_argument("--splits", nargs="+", type=int, default=SPLITS, help="seeds of the splits")
    parser.add_argument("--recipes", nargs="+", default=["default"], choices=list(RECIPES))
    parser.add_argument("--aggregators", nargs="+", default=[DEFAULT_AGGREGATOR], help=f"including '{CEILING}'")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="draw the differences from the first recipe, as PNG"
    )


def measure(options: argparse.Namespace) -> Measured:
    asked = [(task, rate) for one in options.tasks for task, rate in task_and_rates(one)]
    for task, _ in asked:
        require_cells(TASKS[task].data)
    jobs = [
        Job(task, rate, split, recipe, aggregator)
        for task, rate in asked
        for recipe in options.recipes
        for aggregator in options.aggregators
        for split in options.splits
    ]
    for job in jobs:
        trained, second_look = RECIPES[job.recipe].trained, RECIPES[job.recipe].second_look
        if trained and TASKS[job.task].bag_size is None:
            raise SystemExit(
                f"'{job.recipe}' trains on the bags of a split, and would see people held out in '{job.task}'. Remove one."
            )
        if second_look < 1 and TASKS[job.task].bag_size is None:
            raise SystemExit(f"'{job.recipe}' is for bags that are drawn, not for '{job.task}'. Remove one.")
        # One process makes the encoder. A trained one draws its bags from the default recipe's list of cells.
        _read(TASKS[job.task].data, options.work, "default" if trained or second_look < 1 else job.recipe)
        if second_look < 1:
            _read(TASKS[job.task].data, options.work, ONE_ORIENTATION)
        if trained:
            _trained_cells(options.work, job)
    # Parallel jobs use the cores better than the threads of one job. Libraries read this when they are imported.
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(usable_cores(), get_context("spawn")) as pool:
        runs = list(pool.map(partial(_finished, options.work), jobs))
    text = (
        f"Means over {len(options.splits)} splits, in percent, with 95 % intervals. "
        f"A fit took at most {max(run['seconds'] for run in runs):.0f} s of one core, for people all folds together."
    )
    differences = [_differences(runs)] if len(_variants(runs)) > 1 else []
    if options.picture:
        draw_differences(runs, options.picture)
    return Measured({"runs": runs}, (_figures(runs), text, *differences))


def task_and_rates(asked: str) -> list[tuple[str, float]]:
    """`mixed` → the task at each of its rates, `mixed:0.05` → at this one."""
    task, _, rate = asked.partition(":")
    if task not in TASKS:
        raise SystemExit(f"there is no task '{task}'. Available: {', '.join(TASKS)}.")
    return [(task, float(rate))] if rate else [(task, one) for one in TASKS[task].rates]


def _finished(work: Path, job: Job) -> dict[str, Any]:
    """The figures of one job. They are stored in ``work`` and reused."""
    name = f"{job.task}-{job.rate}-{job.split}-{job.aggregator}.json".replace(" ", "-")
    file = work / job.recipe.replace(" ", "-") / "figures" / name
    if not file.is_file():
        found = job_figures(work, job)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial_file = file.with_suffix(f".{os.getpid()}")
        partial_file.write_text(json.dumps(found))
        partial_file.replace(file)
    figures: dict[str, Any] = json.loads(file.read_text())
    return job.__dict__ | figures


def job_figures(work: Path, job: Job) -> dict[str, float | None]:
    """Draw the bags of a split, fit, and evaluate. ``seconds`` is the time of fitting."""
    task = TASKS[job.task]
    recipe = RECIPES[job.recipe]
    name = "default" if recipe.second_look < 1 else job.recipe
    cells = _trained_cells(work, job) if recipe.trained else _read(task.data, work, name)
    normal, abnormal = pools(cells, task)
    if task.bag_size is None:
        return judge_people(cells, people(cells, task, job.rate, job.split), job.aggregator, job.split)
    bags = draw(normal, abnormal, task.bag_size, job.rate, job.split)
    started = time.perf_counter()
    scorer = fit(cells, bags[:TRAIN_BAGS], job.aggregator, job.split)
    seconds = time.perf_counter() - started
    unseen = np.setdiff1d(abnormal, np.concatenate([bag.cells for bag in bags]))
    if recipe.second_look < 1:
        single = _read(task.data, work, ONE_ORIENTATION)
        scorer = _with_second_look(scorer, recipe.second_look, cells.values.shape[1], job.split)
        cells = replace(cells, values=np.concatenate([cells.values, single.values], axis=1))
    return judge(cells, scorer, bags[TRAIN_BAGS:], unseen, job.split) | {"seconds": seconds}


def _with_second_look(scorer: Scorer, fraction: float, dim: int, seed: int) -> Scorer:
    """Score bags as `cytomil rank` scores large slides.

    The first ``dim`` columns are features in all orientations, the others in one. Blocks are of shuffled cells, because
    `judge` puts abnormal cells last.
    """
    from cytomil.triage.second_look import SecondLook

    rng = np.random.default_rng((seed, 2))

    def score(values: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = np.ascontiguousarray(values[:, dim:])
        look = SecondLook(lambda block: scorer(block)[1], fraction, all_of_first=0)
        order = rng.permutation(len(values))
        for start in range(0, len(values), _RANK.batch_size):
            block = order[start : start + _RANK.batch_size]
            chosen = block[look.choose(mixed[block])]
            mixed[chosen] = values[chosen, :dim]
        return scorer(mixed)

    return score


@lru_cache(maxsize=2)
def _read(data: Path, work: Path, recipe: str) -> Cells:
    return embed_cells(data, work / recipe.replace(" ", "-") / data.name, RECIPES[recipe], leave_out=(PLATELETS,))


def _trained_cells(work: Path, job: Job) -> Cells:
    """All cells, embedded by an encoder that was trained on this split's training bags and their slide labels."""
    from cytomil.bags.bag_file import BagInfo, write_bag
    from cytomil.bags.manifest import BagRow, write_manifest

    task = TASKS[job.task]
    plain = _read(task.data, work, "default")
    files = [file for name in dict.fromkeys(plain.folder) for file in sorted((task.data / name).iterdir())]
    where = work / job.recipe.replace(" ", "-") / f"{job.task}-{job.rate}-{job.split}".replace(" ", "-")
    bags = where / "bags"
    if not (bags / "bags.csv").is_file():
        bags.mkdir(parents=True, exist_ok=True)
        rows = []
        for number, bag in enumerate(draw(*pools(plain, task), task.bag_size or 0, job.rate, job.split)[:TRAIN_BAGS]):
            bag_id = f"train-{number:02d}"
            instances = [
                cell(files[i], int(is_abnormal)) for i, is_abnormal in zip(bag.cells, bag.abnormal, strict=True)
            ]
            info = BagInfo(bag_id, bag.label, patient_id=bag_id, source=task.data.name)
            sha256, n = write_bag(bags / f"{bag_id}.h5", info, instances)
            rows.append(BagRow(bag_id, f"{bag_id}.h5", bag_id, "train", bag.label, n, bag.abnormal.mean(), sha256))
        write_manifest(bags, rows)
    recipe = RECIPES[job.recipe]
    seeded = replace(recipe, pretrain=(*recipe.pretrain, "--seed", str(job.split)))
    return embed_cells(task.data, where, seeded, bags, leave_out=(PLATELETS,))


def pools(cells: Cells, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the normal cells, and of the abnormal cells."""
    kinds = np.array([_kind(name) for name in cells.folder])
    return np.flatnonzero(np.isin(kinds, task.normal)), np.flatnonzero(np.isin(kinds, task.abnormal))


def _kind(folder: str) -> str:
    """`LYT` → `LYT`, `cells/uninfected/H1` → `uninfected`."""
    parts = folder.split("/")
    return parts[0] if len(parts) == 1 else parts[1]


def draw(normal: np.ndarray, abnormal: np.ndarray, bag_size: int, rate: float, seed: int) -> list[Drawn]:
    """Training bags, then test bags, without common cells. Every second bag is positive.

    Raises:
        ValueError: there are too few cells.
    """
    rng = np.random.default_rng(seed)
    normal, abnormal = rng.permutation(normal), rng.permutation(abnormal)
    witnesses = max(1, round(bag_size * rate))
    bags = []
    for number in range(TRAIN_BAGS + TEST_BAGS):
        label = number % 2
        n = witnesses * label
        if len(normal) < bag_size - n or len(abnormal) < n:
            raise ValueError(f"there are too few cells for {TRAIN_BAGS + TEST_BAGS} bags of {bag_size}")
        cells = np.concatenate([normal[: bag_size - n], abnormal[:n]])
        normal, abnormal = normal[bag_size - n :], abnormal[n:]
        order = rng.permutation(bag_size)
        bags.append(Drawn(cells[order], order >= bag_size - n, label))
    return bags


def people(cells: Cells, task: Task, rate: float, seed: int) -> list[Drawn]:
    """One bag per infected person. Every second has no parasitised cells, the others the fraction ``rate``, at least one."""
    rng = np.random.default_rng(seed)
    name_of = np.array([folder.split("/")[-1] for folder in cells.folder])
    normal, abnormal = pools(cells, task)
    bags = []
    for number, person in enumerate(rng.permutation(sorted(set(name_of[abnormal])))):
        own, odd = normal[name_of[normal] == person], abnormal[name_of[abnormal] == person]
        label = number % 2
        wanted = label * max(1, round(rate * len(own) / (1 - rate)))
        chosen = np.concatenate([own, rng.permutation(odd)[:wanted]])
        order = rng.permutation(len(chosen))
        bags.append(Drawn(chosen[order], order >= len(own), label, str(person)))
    return bags


def fit(
    cells: Cells,
    bags: Sequence[Drawn],
    aggregator: str,
    seed: int,
    verdicts: Sequence[np.ndarray] | None = None,
) -> Scorer:
    """Fit an aggregator to the bags, their labels and, if given, verdicts on cells. Only `CEILING` uses instance labels."""
    import torch

    from cytomil.mil.bags import TrainingBag
    from cytomil.mil.config import FitMilConfig
    from cytomil.mil.cross_validate import training_epochs

    if aggregator == CEILING:
        return _supervised(cells, bags)
    settings = FitMilConfig(aggregator=aggregator, seed=seed, workers=1)
    given = [
        TrainingBag(
            str(i),
            torch.from_numpy(cells.values[bag.cells]),
            bag.label,
            bag.person or str(i),
            cells.groups,
            verdicts=None if verdicts is None else torch.from_numpy(verdicts[i]),
        )
        for i, bag in enumerate(bags)
    ]
    *_, (fitted, standardise) = training_epochs(given, settings, settings.epochs, seed)

    def score(values: np.ndarray) -> tuple[float, np.ndarray]:
        probability, scores = fitted.assess(standardise(torch.from_numpy(values)))
        return probability, scores.numpy()

    return score


def _supervised(cells: Cells, bags: Sequence[Drawn]) -> Scorer:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from cytomil.mil.aggregators.base import top_count
    from cytomil.mil.config import FitMilConfig

    fraction = FitMilConfig().top_fraction
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    model.fit(cells.values[np.concatenate([bag.cells for bag in bags])], np.concatenate([bag.abnormal for bag in bags]))

    def score(values: np.ndarray) -> tuple[float, np.ndarray]:
        scores = model.decision_function(values)
        return float(np.sort(scores)[-top_count(len(scores), fraction) :].mean()), scores

    return score


def judge(
    cells: Cells, scorer: Scorer, tests: Sequence[Drawn], unseen: np.ndarray, seed: int
) -> dict[str, float | None]:
    """Figures of bags like ``tests``, redrawn from their cells and from ``unseen`` abnormal cells."""
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng((seed, 1))
    normal = np.concatenate([bag.cells[~bag.abnormal] for bag in tests])
    abnormal = np.concatenate([unseen, *(bag.cells[bag.abnormal] for bag in tests)])
    size, witnesses = len(tests[0].cells), max(int(bag.abnormal.sum()) for bag in tests)
    bags, numbers = [], []
    for label in np.arange(REDRAWN) % 2:
        n = witnesses * label
        chosen = np.concatenate([rng.choice(normal, size - n, replace=False), rng.choice(abnormal, n, replace=False)])
        number, scores = scorer(cells.values[chosen])
        numbers.append(number)
        bags.append((scores, np.arange(size) >= size - n))
    return _cell_figures(bags) | {"bags": float(roc_auc_score(np.arange(REDRAWN) % 2, numbers))}


def judge_people(cells: Cells, bags: Sequence[Drawn], aggregator: str, seed: int) -> dict[str, float | None]:
    """Figures of held-out people, and the bag AUROC of the same people without parasitised cells."""
    from sklearn.metrics import roc_auc_score

    started = time.perf_counter()
    judged = list(_held_out(cells, bags, aggregator, seed))
    seconds = time.perf_counter() - started
    found = _cell_figures([(scores, bag.abnormal) for bag, _, scores in judged])
    found["bags"] = float(roc_auc_score([bag.label for bag, *_ in judged], [number for _, number, _ in judged]))
    if aggregator != CEILING:
        bare = [Drawn(bag.cells[~bag.abnormal], bag.abnormal[~bag.abnormal], bag.label, bag.person) for bag in bags]
        without = list(_held_out(cells, bare, aggregator, seed))
        found["control"] = float(
            roc_auc_score([bag.label for bag, *_ in without], [number for _, number, _ in without])
        )
    return found | {"seconds": seconds}


def _held_out(
    cells: Cells, bags: Sequence[Drawn], aggregator: str, seed: int
) -> Iterator[tuple[Drawn, float, np.ndarray]]:
    # Labels alternate, so assigning pairs to folds makes every fold half positive.
    fold_of = np.arange(len(bags)) // 2 % PEOPLE_FOLDS
    for fold in range(PEOPLE_FOLDS):
        scorer = fit(cells, [bag for bag, other in zip(bags, fold_of, strict=True) if other != fold], aggregator, seed)
        for bag, other in zip(bags, fold_of, strict=True):
            if other == fold:
                yield bag, *scorer(cells.values[bag.cells])


def _cell_figures(bags: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, float | None]:
    from cytomil.evaluation.metrics import instance_metrics

    found = instance_metrics([(scores, abnormal.astype(int)) for scores, abnormal in bags if abnormal.any()])
    return {
        "cells": found.auroc,
        "recall_at_40pct": found.recall_at_40pct,
        "recall_at_5pct": found.recall_at_5pct,
    }


def _variants(runs: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((run["recipe"], run["aggregator"]) for run in runs))


def _by_task(runs: Sequence[dict[str, Any]]) -> dict[tuple[str, float], list[dict[str, Any]]]:
    found: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for run in runs:
        found.setdefault((run["task"], run["rate"]), []).append(run)
    return found


def _figures(runs: Sequence[dict[str, Any]]) -> Table:
    rows = []
    for (task, rate), of_task in _by_task(runs).items():
        for variant in _variants(of_task):
            of = [run for run in of_task if (run["recipe"], run["aggregator"]) == variant]
            shown = {short: interval([run.get(key) for run in of]) for key, short in FIGURES.items()}
            rows.append(_row(task, rate, variant) | shown)
    return Table.of(*rows)


def _differences(runs: Sequence[dict[str, Any]]) -> Table:
    rows = []
    for (task, rate), of_task in _by_task(runs).items():
        for variant in _variants(of_task)[1:]:
            shown = {
                short: interval(paired(of_task, variant, key), signed=True)
                for key, short in FIGURES.items()
                if key != "control"
            }
            rows.append(_row(task, rate, variant) | shown)
    return Table.of(*rows)


def paired(runs: Sequence[dict[str, Any]], variant: tuple[str, str], figure: str) -> list[float]:
    """The difference of a figure between a variant and the first one, in points, per split."""
    first, *_ = _variants(runs)
    of = {(run["recipe"], run["aggregator"], run["split"]): run.get(figure) for run in runs}
    both = [(of.get((*first, split)), of.get((*variant, split))) for split in sorted({run["split"] for run in runs})]
    return [100 * (other - one) for one, other in both if one is not None and other is not None]


def _row(task: str, rate: float, variant: tuple[str, str]) -> dict[str, str]:
    return {"task": task, "rate": f"{100 * rate:g} %", "recipe": _name(variant)}


def _name(variant: tuple[str, str]) -> str:
    recipe, aggregator = variant
    return (
        recipe if aggregator == DEFAULT_AGGREGATOR else f"{recipe}, {aggregator}" if recipe != "default" else aggregator
    )


def interval(values: Sequence[float | None], signed: bool = False) -> str:
    """Mean and half width of the 95 % interval: of fractions in percent, of signed differences as they are."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    scaled = known if signed else [100 * value for value in known]
    text = f"{mean(scaled):+.1f}" if signed else f"{mean(scaled):.1f}"
    return f"{text}±{student_half_width(scaled):.1f}" if len(known) > 1 else text


def draw_differences(runs: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw each variant's paired differences from the first one in cell AUROC and bag AUROC, one panel per task."""
    from matplotlib.figure import Figure

    tasks = _by_task(runs)
    first, *others = _variants(runs)
    figure = Figure(figsize=(9, 1.2 + 0.28 * len(others) * ((len(tasks) + 1) // 2)), layout="constrained")
    panels = figure.subplots((len(tasks) + 1) // 2, 2, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, ((task, rate), of_task) in zip(panels, tasks.items(), strict=False):
        for place, variant in enumerate(others):
            for shift, key, colour, mark in ((-0.15, "cells", "#0072B2", "o"), (0.15, "bags", "#D55E00", "s")):
                values = paired(of_task, variant, key)
                if values:
                    label = f"{FIGURES[key]}' AUROC" if not place else None
                    axes.errorbar(
                        mean(values),
                        place + shift,
                        xerr=student_half_width(values),
                        fmt=mark,
                        color=colour,
                        label=label,
                    )
        axes.axvline(0, color="#777777", linewidth=1)
        axes.set_title(f"{task}, {100 * rate:g} %", loc="left", fontsize=10)
        axes.set_yticks(range(len(others)), map(_name, others), fontsize=8)
        axes.invert_yaxis() if axes is panels[0] else None
    for axes in panels[len(tasks) :]:
        axes.set_axis_off()
    figure.supxlabel(f"difference from '{_name(first)}' in points, means over splits with 95 % intervals", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=8)
    figure.savefig(file, dpi=110)
