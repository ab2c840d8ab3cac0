"""Peak memory of ranking one whole slide, by the slide's size.

    python -m bench.rank_memory [--sides 10000 30000] [--filled 0.1]

Synthetic pyramidal slides, a tenth of each full of cells (some 2,500 and 22,500), each ranked in a process of its own. "Above
the model's own" is the peak resident memory less what the same process needs to load the model and rank a slide of 1,000 px.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.cells import write_synthetic
from cytomil.bags.make import make_bags
from cytomil.features.embed import embed
from cytomil.mil.fit import fit_mil
from cytomil.pretrain.loop import pretrain
from cytomil.progress import Silent
from cytomil.settings import EmbedSettings, FitMilSettings, MakeBagsSettings, PretrainSettings, RankSettings
from cytomil.triage.rank import rank

_SMALL_SIDE = 1_000


def make_model(root: Path) -> Path:
    """A triage model that knows how to cut slides, from four slides that all look alike: it has nothing to learn."""
    (root / "slides").mkdir()
    lines = ["slide,label,split"]
    for i in range(4):
        write_synthetic(root / "slides" / f"{i}.tif", _SMALL_SIDE)
        lines.append(f"{i},{i % 2},train")
    (root / "labels.csv").write_text("\n".join(lines))
    bags, encoder, features = root / "bags", root / "encoder", root / "features"
    make_bags(MakeBagsSettings(source=str(root / "slides"), labels=root / "labels.csv", out=bags), Silent())
    pretrain(PretrainSettings(bags=bags, out=encoder, epochs=1), Silent())
    embed(EmbedSettings(bags=bags, encoder=encoder, out=features), Silent())
    fit_mil(FitMilSettings(features=features, encoder=encoder, out=root / "model", epochs=2, folds=2), Silent())
    return root / "model"


def rank_one(model: Path, folder: Path) -> dict[str, object]:
    """Rank a small slide, then the one in ``folder``; peak memory of this process after each."""
    with tempfile.TemporaryDirectory() as made:
        small, out = Path(made) / "small", Path(made) / "out"
        small.mkdir()
        write_synthetic(small / "small.tif", _SMALL_SIDE)
        rank(small, RankSettings(model=model, out=out), Silent())
        own, started = _peak(), time.perf_counter()
        (slide,) = rank(folder, RankSettings(model=model, out=out), Silent()).slides
    return {
        "cells": slide.n_instances,
        "assessed": slide.probability is not None,
        "seconds": round(time.perf_counter() - started),
        "model's own, GB": round(own, 2),
        "peak, GB": round(_peak(), 2),
        "above the model's own, GB": round(_peak() - own, 2),
    }


def _peak() -> float:
    """Peak resident memory of this program so far, GB; Linux only.

    Not getrusage's: what that tells of a child includes its parent's memory at the moment of the fork.
    """
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[10_000, 30_000], help="px")
    parser.add_argument("--filled", type=float, default=0.1, help="share of a slide's height that holds cells, 0 to 1")
    parser.add_argument("--one", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(rank_one(*options.one)))
        return
    with tempfile.TemporaryDirectory() as made:
        model_root = Path(made)
        make_model(model_root)
        for side in options.sides:
            folder = model_root / f"big-{side}"
            folder.mkdir()
            write_synthetic(folder / "slide.tif", side, filled=options.filled)
            command = [sys.executable, "-m", "bench.rank_memory", "--one", str(model_root / "model"), str(folder)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            row = {"side, px": f"{side:,}"} | json.loads(done.stdout)
            if side == options.sides[0]:
                print(f"| {' | '.join(row)} |\n| {' | '.join('---:' for _ in row)} |")
            print(f"| {' | '.join(str(value) for value in row.values())} |", flush=True)


if __name__ == "__main__":
    main()
