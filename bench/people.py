"""Bags of one person each: infected people, half of them without parasitised cells, cross-validated over people.

Slides of real people differ in stain, focus and day. Simulated bags from a single pool of cells do not. The control uses
the same bags without witnesses: a model that still separates the labels recognises people. The second set of bags,
healthy and infected people, is confounded in this way. There is one line per set of bags and witness rate, with means over
seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from bench import child
from bench.cell_features import cell
from bench.data import PATIENTS, require_cells
from bench.tables import Measured, Table

NORMAL, ABNORMAL = "uninfected", "parasitized"
HEALTHY = "H"
"""Prefix of the names of healthy people."""
_SHOWN = {"cells_auroc": "cells", "recall_at_5pct": "R@5 %", "bags_auroc": "bags", "control_auroc": "control"}


def people_bags(data: Path, out: Path, witness_rate: float, seed: int, healthy: bool = False) -> Path:
    """Write one bag per person to ``out``, all in the training split, and return ``out``.

    A bag contains all normal cells of a person. In a positive bag, the fraction ``witness_rate`` of the cells is
    parasitised, but at least one cell. If a person has too few parasitised cells, the fraction is lower.

    Args:
        data: class folders with one folder per person.
        out: folder of the bags.
        witness_rate: 0 to 1, exclusive.
        seed: seed of the people without parasitised cells, and of the cells that the others keep.
        healthy: negative bags are of healthy people, and all infected people are positive.
    """
    from cytomil.bags.bag_file import BagInfo, write_bag
    from cytomil.bags.manifest import BagRow, write_manifest

    rng = np.random.default_rng(seed)
    people = sorted(folder.name for folder in (data / "cells" / NORMAL).iterdir())
    infected = [name for name in people if not name.startswith(HEALTHY)]
    if healthy:
        label_of = {name: int(name in infected) for name in people}
    else:
        label_of = {name: i % 2 for i, name in enumerate(rng.permutation(infected).tolist())}
    rows = []
    for number, (name, label) in enumerate(sorted(label_of.items())):
        normal, abnormal = (sorted((data / "cells" / kind / name).glob("*")) for kind in (NORMAL, ABNORMAL))
        wanted = label * max(1, round(witness_rate * len(normal) / (1 - witness_rate)))
        witnesses = rng.permutation(len(abnormal))[:wanted]
        files = [(file, 0) for file in normal] + [(abnormal[i], 1) for i in witnesses]
        cells = [cell(*files[i]) for i in rng.permutation(len(files))]
        bag_id = f"person-{number:03d}"
        info = BagInfo(bag_id, label, patient_id=name, source=data.name)
        sha256, n = write_bag(out / f"{bag_id}.h5", info, cells)
        rows.append(BagRow(bag_id, f"{bag_id}.h5", name, "train", label, n, len(witnesses) / n, sha256))
    write_manifest(out, rows)
    return out


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="?", type=Path, default=PATIENTS, help="folder with cells/CLASS/PERSON/")
    parser.add_argument("--work", type=Path, default=Path("runs/people"), help="folder for the runs")
    parser.add_argument("--rates", nargs="+", type=float, default=[0.1, 0.05])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--aggregators", nargs="+", default=["self-paced"])


def measure(options: argparse.Namespace) -> Measured:
    require_cells(options.data, f"cells/{NORMAL}")
    runs = []
    for healthy in (False, True):
        for rate in options.rates[-1:] if healthy else options.rates:
            for seed in options.seeds:
                for aggregator in options.aggregators:
                    where = options.work / f"{'healthy' if healthy else 'infected'}-{rate}-{seed}"
                    control = run(options.data, where, rate, seed, healthy, aggregator)["control"]
                    bags = "healthy, infected" if healthy else "infected alone"
                    runs.append(
                        {"bags": bags, "rate": rate, "seed": seed, "aggregator": aggregator}
                        | held_out_cells(where / "features", where / "bags", aggregator, seed)
                        | {"bags_auroc": control["real"]["auroc"], "control_auroc": control["control"]["auroc"]}
                        | {"warned": control["differs"]}
                    )
    return Measured({"runs": runs}, (_means(runs),))


def run(data: Path, where: Path, rate: float, seed: int, healthy: bool, aggregator: str) -> dict[str, Any]:
    """The content of metrics.json for these bags and their control. Results that exist are reused."""
    bags, encoder, features = where / "bags", where / "encoder", where / "features"
    model, reports = where / f"model-{aggregator}", where / f"reports-{aggregator}"
    if not (reports / "metrics.json").is_file():
        if not (features / "features.csv").is_file():
            people_bags(data, bags, rate, seed, healthy)
            child.cytomil("pretrain", "--method", "none", "--bags", str(bags), "--out", str(encoder))
            line = ["--bags", str(bags), "--encoder", str(encoder), "--out", str(features)]
            child.cytomil("embed", *line)
        line = ["--features", str(features), "--encoder", str(encoder), "--out", str(model)]
        child.cytomil("fit-mil", *line, "--aggregator", aggregator, "--seed", str(seed))
        line = ["--features", str(features), "--model", str(model), "--bags", str(bags), "--out", str(reports)]
        child.cytomil("evaluate", *line, "--split", "train", "--control")
    found: dict[str, Any] = json.loads((reports / "metrics.json").read_text())
    return found


def held_out_cells(features: Path, bags: Path, aggregator: str, seed: int) -> dict[str, float | None]:
    """Mean ranking metrics of positive bags. The cells of each bag are scored by a model that did not see the person."""
    from cytomil.bags.instance_labels import read_instance_labels
    from cytomil.bags.manifest import read_manifest
    from cytomil.evaluation.metrics import instance_metrics
    from cytomil.features.index import read_index
    from cytomil.mil.config import FitMilConfig
    from cytomil.mil.cross_validate import assign_folds, training_epochs
    from cytomil.mil.fit import training_bags
    from cytomil.progress import Silent

    opened = read_index(features).open("all")
    manifest = read_manifest(bags)
    file_of = {row.bag_id: manifest.file_of(row) for row in manifest.rows}
    settings = FitMilConfig(aggregator=aggregator, seed=seed)
    people = training_bags(opened, settings, Silent())
    folds = assign_folds(people, settings)
    scored = []
    for fold in range(folds.max() + 1):
        kept = [bag for bag, other in zip(people, folds, strict=True) if other != fold]
        *_, (fitted, standardise) = training_epochs(kept, settings, settings.epochs, seed)
        for i in np.flatnonzero(folds == fold):
            if people[i].label:
                label_of = read_instance_labels(file_of[people[i].bag_id])
                labels = [label_of[name] for name in opened[i][1].instance_ids]
                scored.append((fitted.assess(standardise(people[i].values))[1].numpy(), np.array(labels)))
    found = instance_metrics(scored)
    return {"cells_auroc": found.auroc, "recall_at_5pct": found.recall_at_5pct}


def _means(runs: list[dict[str, Any]]) -> Table:
    groups = list(dict.fromkeys((run["bags"], run["rate"], run["aggregator"]) for run in runs))
    rows = []
    for bags, rate, aggregator in groups:
        of = [run for run in runs if (run["bags"], run["rate"], run["aggregator"]) == (bags, rate, aggregator)]
        means = {shown: f"{mean(run[key] for run in of):.2f}" for key, shown in _SHOWN.items()}
        warned = f"{sum(run['warned'] for run in of)} of {len(of)}"
        rows.append({"bags": bags, "rate": f"{rate:.0%}", "aggregator": aggregator} | means | {"warned": warned})
    return Table.of(*rows)
