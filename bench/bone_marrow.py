"""The whole road on real bone-marrow cells, a few methods and seeds, with the default settings.

For each method and seed: make-bags, pretrain, embed, fit-mil, evaluate, by the README's own lines. What is finished in the
work folder is not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from bench import child
from bench.data import BONE_MARROW, BONE_MARROW_CLASSES, require_cells
from bench.tables import Measured, Table

BAGS = [*BONE_MARROW_CLASSES, "--bag-size", "80", "--witness-rate", "0.1"]
FIGURES: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "bag AUROC": lambda m: m["bag"]["auroc"],
    "bag F1": lambda m: m["bag"]["f1"],
    "cell AUROC": lambda m: m["instance"]["auroc"],
    "R@40 %": lambda m: m["instance"]["recall_at_40pct"],
    "R@5 %": lambda m: m["instance"]["recall_at_5pct"],
    "to first": lambda m: m["instance"]["review_until_first"],
}


@dataclass(frozen=True)
class Run:
    """One method and seed, its cells ranked by ``score``; metrics.json and encoder.json as they were written."""

    method: str
    seed: int
    score: str
    metrics: dict[str, Any]
    card: dict[str, Any]

    def figures(self) -> dict[str, float | None]:
        return {name: read(self.metrics) for name, read in FIGURES.items()}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="?", type=Path, default=BONE_MARROW, help="class folders of bone-marrow cells")
    parser.add_argument("--work", type=Path, default=Path("runs/bone-marrow"), help="folder for the runs")
    parser.add_argument("--methods", nargs="+", default=["slam-ags", "simclr"])
    parser.add_argument("--scores", nargs="+", default=["evidence", "attention"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])


def measure(options: argparse.Namespace) -> Measured:
    require_cells(options.data)
    runs = []
    for method in options.methods:
        for seed in options.seeds:
            where = options.work / method / str(seed)
            train(options.data, where, method, seed)
            for score in options.scores:
                metrics, card = evaluate(where, score, seed)
                runs.append(Run(method, seed, score, metrics, card))
    results = {
        "runs": [
            {"method": run.method, "seed": run.seed, "cells_by": run.score, **_of_encoder(run), **run.figures()}
            for run in runs
        ]
    }
    encoders = {(run.method, run.seed): run for run in runs}.values()
    return Measured(results, (_encoders(list(encoders)), _runs(runs), _means(runs)))


def train(data: Path, run: Path, method: str, seed: int) -> None:
    places = {"bags": run / "bags", "encoder": run / "models/encoder", "features": run / "features"}
    if (places["features"] / "features.csv").is_file():
        return
    cytomil("make-bags", str(data), *BAGS, "--seed", str(seed), "--out", str(places["bags"]))
    line = ["--method", method, "--seed", str(seed), "--bags", str(places["bags"]), "--out", str(places["encoder"])]
    cytomil("pretrain", *line, "--batch-size", "128", "--image-size", "32", "--arch", "resnet18", "--weights", "none")
    line = ["--bags", str(places["bags"]), "--encoder", str(places["encoder"]), "--out", str(places["features"])]
    cytomil("embed", *line, "--layer", "z", "--orientations", "1")


def evaluate(run: Path, score: str, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    reports, model, features = run / f"reports-{score}", run / f"models/{score}", run / "features"
    if not (reports / "metrics.json").is_file():
        line = ["--features", str(features), "--encoder", str(run / "models/encoder"), "--seed", str(seed)]
        cytomil("fit-mil", *line, "--aggregator", "pamil", "--instance-score", score, "--out", str(model))
        line = ["--features", str(features), "--model", str(model), "--bags", str(run / "bags")]
        cytomil("evaluate", *line, "--out", str(reports))
    card = json.loads((run / "models/encoder/encoder.json").read_text())
    return json.loads((reports / "metrics.json").read_text()), card


def cytomil(*line: str) -> None:
    print("cytomil", *line, file=sys.stderr, flush=True)
    child.cytomil(*line)


def _of_encoder(run: Run) -> dict[str, Any]:
    return {
        "collapsed": run.metrics["collapsed"],
        "nt_xent_margin": run.card["nt_xent_margin"],
        "effective_rank": run.card["effective_rank"],
    }


def _encoders(runs: list[Run]) -> Table:
    return Table.of(
        *(
            {
                "method": run.method,
                "seed": run.seed,
                "collapsed": "YES" if run.metrics["collapsed"] else "no",
                "margin, nats": _number(run.card["nt_xent_margin"]),
                "rank of h": f"{run.card['effective_rank']:.0f}",
            }
            for run in runs
        )
    )


def _runs(runs: list[Run]) -> Table:
    return Table.of(
        *(
            {
                "method": run.method,
                "cells by": run.score,
                "seed": run.seed,
                **{name: _number(value) for name, value in run.figures().items()},
            }
            for run in runs
        )
    )


def _means(runs: list[Run]) -> Table:
    """Mean and standard deviation over seeds; a column a method and score, so that it stays narrow."""
    groups = list(dict.fromkeys((run.method, run.score) for run in runs))
    rows = []
    for figure in FIGURES:
        row = {"mean ± sd": figure}
        for method, score in groups:
            values = [run.figures()[figure] for run in runs if (run.method, run.score) == (method, score)]
            row[f"{method}, {score}"] = _mean([value for value in values if value is not None])
        rows.append(row)
    return Table.of(*rows)


def _mean(values: list[float]) -> str:
    if len(values) < 2:
        return _number(values[0] if values else None)
    return f"{mean(values):.2f} ± {stdev(values):.2f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
