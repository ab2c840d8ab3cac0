"""The whole road on real bone-marrow cells: `python -m bench.bone_marrow [DATA_DIR] --work FOLDER`.

For each method and seed: make-bags, pretrain, embed, fit-mil, evaluate, by the README's own lines and the default
settings. What is finished in the work folder is not run again. Prints the measured figures as Markdown, one line a run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

DEFAULT_DATA = Path(__file__).parents[2] / "shared" / "data" / "bone-marrow"
BAGS = ["--normal", "LYT,NGS,EOS,MON", "--abnormal", "BLA,PMO", "--bag-size", "80", "--witness-rate", "0.1"]
Show = Callable[[dict[str, Any], dict[str, Any]], str]
COLUMNS: dict[str, Show] = {
    "collapsed": lambda m, _: "YES" if m["collapsed"] else "no",
    "margin, nats": lambda _, c: number(c["nt_xent_margin"]),
    "rank of h": lambda _, c: f"{c['effective_rank']:.0f}",
    "bag AUROC": lambda m, _: number(m["bag"]["auroc"]),
    "bag F1": lambda m, _: number(m["bag"]["f1"]),
    "cell AUROC": lambda m, _: number(m["instance"]["auroc"]),
    "recall@40 %": lambda m, _: number(m["instance"]["recall_at_40pct"]),
    "recall@5 %": lambda m, _: number(m["instance"]["recall_at_5pct"]),
    "cells to first": lambda m, _: number(m["instance"]["review_until_first"]),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, default=DEFAULT_DATA, help="class folders of bone-marrow cells")
    parser.add_argument("--work", type=Path, default=Path("runs/bone-marrow"), help="folder for the runs")
    parser.add_argument("--methods", nargs="+", default=["slam-ags", "simclr"])
    parser.add_argument("--scores", nargs="+", default=["evidence", "attention"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        print(f"skipped: {arguments.data} is not there; name a folder of class folders", file=sys.stderr)
        return 0
    rows = []
    for method in arguments.methods:
        for seed in arguments.seeds:
            run = arguments.work / method / str(seed)
            train(arguments.data, run, method, seed)
            for score in arguments.scores:
                metrics, card = evaluate(run, score, seed)
                rows.append((method, score, seed, metrics, card))
    print(markdown(rows))
    return 0


def train(data: Path, run: Path, method: str, seed: int) -> None:
    places = {"bags": run / "bags", "encoder": run / "models/encoder", "features": run / "features"}
    if (places["features"] / "features.csv").is_file():
        return
    cytomil("make-bags", str(data), *BAGS, "--seed", str(seed), "--out", str(places["bags"]))
    line = ["--method", method, "--seed", str(seed), "--bags", str(places["bags"]), "--out", str(places["encoder"])]
    cytomil("pretrain", *line)
    line = ["--bags", str(places["bags"]), "--encoder", str(places["encoder"]), "--out", str(places["features"])]
    cytomil("embed", *line)


def evaluate(run: Path, score: str, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    reports, model, features = run / f"reports-{score}", run / f"models/{score}", run / "features"
    if not (reports / "metrics.json").is_file():
        line = ["--features", str(features), "--encoder", str(run / "models/encoder"), "--seed", str(seed)]
        cytomil("fit-mil", *line, "--instance-score", score, "--out", str(model))
        line = ["--features", str(features), "--model", str(model), "--bags", str(run / "bags")]
        cytomil("evaluate", *line, "--out", str(reports))
    card = json.loads((run / "models/encoder/encoder.json").read_text())
    return json.loads((reports / "metrics.json").read_text()), card


def cytomil(*line: str) -> None:
    print("cytomil", *line, file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "cytomil", *line], check=True, stderr=subprocess.DEVNULL)


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def markdown(rows: list[tuple[str, str, int, dict[str, Any], dict[str, Any]]]) -> str:
    lines = ["| method | cells by | seed | " + " | ".join(COLUMNS) + " |", "| --- " * (len(COLUMNS) + 3) + "|"]
    for method, score, seed, metrics, card in rows:
        cells = " | ".join(show(metrics, card) for show in COLUMNS.values())
        lines.append(f"| {method} | {score} | {seed} | {cells} |")
    for method, score in dict.fromkeys((row[0], row[1]) for row in rows):
        group = [row[3:] for row in rows if row[:2] == (method, score)]
        shown = [[show(metrics, card) for metrics, card in group] for show in COLUMNS.values()]
        lines.append(f"| {method} | {score} | mean ± sd | " + " | ".join(map(summary, shown)) + " |")
    return "\n".join(lines)


def summary(shown: list[str]) -> str:
    try:
        values = [float(value) for value in shown]
    except ValueError:
        return f"{shown.count('YES')} of {len(shown)}" if set(shown) <= {"YES", "no"} else "–"
    return f"{mean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else shown[0]


if __name__ == "__main__":
    sys.exit(main())
