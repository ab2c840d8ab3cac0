"""The default recipe on a GPU: cells per second of engines, embed, rank and pretraining.

Cells are real blood-smear cells. Engines run on decoded cells in memory. embed and rank include reading bag files and
writing caches or scores, but not the start of Python. Pretraining is the second of two epochs of SLAM-AGS with a ResNet-18
at 224 px.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from bench.bag_size import write_large_bag
from bench.data import BLOOD_SMEAR, blood_smear_bags, require_cells
from bench.speed import ORIENTATIONS, decoded_cells, embed_bags
from bench.tables import Measured, SkippedError, Table

TRAININGS: dict[str, dict[str, Any]] = {
    "float32": {"precision": "float32"},
    "bf16": {"precision": "bf16"},
    "float16": {"precision": "float16"},
    "bf16, torch.compile": {"precision": "bf16", "compile": True},
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, default=BLOOD_SMEAR, help="class folders of cells")
    parser.add_argument("--bag-size", type=int, default=200, help="cells of each of the 12 training bags")
    parser.add_argument("--cells", type=int, default=30_000, help="cells of the bag that is embedded and ranked")
    parser.add_argument("--alone", type=int, default=20_000, help="cells per round of an engine alone")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--image-size", type=int, default=224, help="side of cells in pretraining, pixels")


def measure(options: argparse.Namespace) -> Measured:
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise SkippedError("it needs an NVIDIA GPU")
    require_cells(options.data)
    gpu = torch.cuda.get_device_name() if options.device == "cuda" else options.device
    with tempfile.TemporaryDirectory() as folder:
        rates = inference(Path(folder), options)
        views = {name: training(Path(folder), options, name) for name in TRAININGS}
    rows = [{"what": name, "cells/s": f"{rate:,.0f}"} for name, rate in rates.items()]
    trained = [{"number format": name, "cells/s": f"{rate:,.0f}"} for name, rate in views.items()]
    results = {"gpu": gpu, "cells_per_second": rates, "pretraining_cells_per_second": views}
    return Measured(results, (f"{gpu}, torch {torch.__version__}.", Table.of(*rows), Table.of(*trained)))


def inference(root: Path, options: argparse.Namespace) -> dict[str, float]:
    from cytomil.encoders.bundle import load_bundle
    from cytomil.encoders.engines import open_engine
    from cytomil.encoders.engines.compile import compile_engine
    from cytomil.encoders.engines.registry import CompileConfig
    from cytomil.encoders.stages import layer_of
    from cytomil.errors import EngineError
    from cytomil.features.embed import embed_in_orientations
    from cytomil.mil.config import FitMilConfig
    from cytomil.mil.fit import fit_mil
    from cytomil.progress import Silent
    from cytomil.training.config import PretrainConfig
    from cytomil.training.loop import pretrain
    from cytomil.triage.config import RankConfig
    from cytomil.triage.rank import rank

    device = options.device
    bags = blood_smear_bags(options.data, root / "bags", options.bag_size, train_bags=12)
    encoder, features, model = root / "encoder", root / "features", root / "model"
    pretrain(PretrainConfig(bags=bags, out=encoder, device=device), Silent())
    embed_bags(bags, encoder, features, device)
    fit_mil(FitMilConfig(features=features, encoder=encoder, out=model), Silent())
    bundle = load_bundle(encoder)
    layer = layer_of("auto", bundle.encoder).embedded
    _, pixels = decoded_cells(bags, options.data, bundle.transform, options.bag_size)
    times = -(-options.alone // len(pixels))
    rates = {}
    for name in ("eager", "torch-compile"):
        if name != "eager":
            line = CompileConfig(encoder=encoder, bags=bags, engine=name, precision="float32", device=device)
            try:
                print(compile_engine(line, Silent()).agreement, file=sys.stderr)
            except EngineError as refused:
                print(refused, file=sys.stderr)
                continue
        engine = open_engine(bundle, layer, name, device, print)

        def alone(engine: Any = engine) -> None:
            for _ in range(times):
                embed_in_orientations(engine.embed, pixels, ORIENTATIONS)

        rates[f"{engine.key} alone"] = times * len(pixels) / seconds(alone, 2)
    large = root / "large"
    write_large_bag(bags, large, options.cells)
    outs = (root / f"out-{i}" for i in count())
    rates["embed"] = options.cells / seconds(lambda: embed_bags(large, encoder, next(outs), device), 2)

    def ranked() -> None:
        rank(large, RankConfig(model=model, out=next(outs), device=device), Silent())

    rates["rank"] = options.cells / seconds(ranked, 2)
    return rates


def training(root: Path, options: argparse.Namespace, name: str) -> float:
    """Cells per second of the second epoch."""
    from cytomil.progress import Silent
    from cytomil.training.config import PretrainConfig
    from cytomil.training.loop import pretrain

    records: list[dict[str, Any]] = []
    common: dict[str, Any] = {
        "method": "slam-ags",
        "arch": "resnet18",
        "weights": "none",
        "epochs": 2,
        "batch_size": 128,
    }
    common |= {"engine": "none", "image_size": options.image_size, "device": options.device} | TRAININGS[name]
    out = root / f"trained-{list(TRAININGS).index(name)}"
    pretrain(PretrainConfig(bags=root / "bags", out=out, **common), Silent(), on_epoch=records.append)
    return float(records[-1]["images_per_second"])


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The minimum of several runs. The first one is the warm-up."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
