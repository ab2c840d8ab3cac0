"""Peak memory of ranking one whole slide, by the slide's size.

Slides are synthetic and pyramidal. A tenth of each is covered with cells (about 2,500 and 22,500). Each is ranked in a
separate process. "Above own" is the peak resident memory minus what the same process needs to load the model and rank a
slide of 1,000 px.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.child import call, own_peak_mb
from bench.synthetic_slides import write_synthetic
from bench.tables import Measured, Table
from cytomil.bags.config import MakeBagsConfig
from cytomil.bags.make import make_bags
from cytomil.features.config import EmbedConfig
from cytomil.features.embed import embed
from cytomil.mil.config import FitMilConfig
from cytomil.mil.fit import fit_mil
from cytomil.progress import Silent
from cytomil.training.config import PretrainConfig
from cytomil.training.loop import pretrain
from cytomil.triage.config import RankConfig
from cytomil.triage.rank import rank

_SMALL_SIDE = 1_000


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sides", type=int, nargs="+", default=[10_000, 30_000], help="px")
    parser.add_argument("--filled", type=float, default=0.1, help="fraction of a slide's height covered with cells")


def measure(options: argparse.Namespace) -> Measured:
    rows = []
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        make_model(root)
        for side in options.sides:
            folder = root / f"big-{side}"
            folder.mkdir()
            write_synthetic(folder / "slide.tif", side, filled=options.filled)
            found, _ = call(rank_one, str(root / "model"), str(folder))
            rows.append({"side_px": side, **found})
    return Measured({"slides": rows}, (Table.of(*map(_shown, rows)),))


def make_model(root: Path) -> Path:
    """Make a triage model that can rank whole slides, from four identical slides, so that it learns nothing."""
    (root / "slides").mkdir()
    lines = ["slide,label,split"]
    for i in range(4):
        write_synthetic(root / "slides" / f"{i}.tif", _SMALL_SIDE)
        lines.append(f"{i},{i % 2},train")
    (root / "labels.csv").write_text("\n".join(lines))
    bags, encoder, features = root / "bags", root / "encoder", root / "features"
    make_bags(MakeBagsConfig(source=str(root / "slides"), labels=root / "labels.csv", out=bags), Silent())
    pretrain(PretrainConfig(bags=bags, out=encoder, epochs=1, image_size=32, arch="resnet18", weights="none"), Silent())
    embed(EmbedConfig(bags=bags, encoder=encoder, out=features, layer="z", orientations=1), Silent())
    briefly = FitMilConfig(
        aggregator="pamil", features=features, encoder=encoder, out=root / "model", epochs=2, folds=2
    )
    fit_mil(briefly, Silent())
    return root / "model"


def rank_one(model: str, folder: str) -> dict[str, Any]:
    """Rank a small slide, then the one in ``folder``. Returns the peak memory of this process after each, in GB."""
    with tempfile.TemporaryDirectory() as made:
        small, out = Path(made) / "small", Path(made) / "out"
        small.mkdir()
        write_synthetic(small / "small.tif", _SMALL_SIDE)
        rank(small, RankConfig(model=Path(model), out=out), Silent())
        own, started = own_peak_mb() / 1000, time.perf_counter()
        (slide,) = rank(Path(folder), RankConfig(model=Path(model), out=out), Silent()).slides
    if slide.probability is None:
        raise SystemExit(f"the slide was not assessed: {slide}")
    seconds = time.perf_counter() - started
    return {"cells": slide.n_instances, "seconds": seconds, "own_gb": own, "peak_gb": own_peak_mb() / 1000}


def _shown(row: dict[str, Any]) -> dict[str, str]:
    return {
        "side, px": f"{row['side_px']:,}",
        "cells": f"{row['cells']:,}",
        "seconds": f"{row['seconds']:.0f}",
        "model's own, GB": f"{row['own_gb']:.2f}",
        "peak, GB": f"{row['peak_gb']:.2f}",
        "above own, GB": f"{row['peak_gb'] - row['own_gb']:.2f}",
    }
