"""Cells per second of the default recipe, from bag files to features and to a worklist, compared with its engine alone.

Cells are real blood-smear cells. The encoder is EfficientNet-Lite0 as made by `cytomil pretrain`, with inner stages and two
orientations. "Alone" is the engine on decoded cells in memory. "embed" and "rank" include reading bag files, writing caches
or scores, and opening the engine, but not the start of Python. "one at a time" opens, decodes and embeds one file after
another, like released code. "matrix product" is the processor's peak speed on the network's arithmetic. All are timed
alternately in one run, and a ratio is the median over rounds. With --former, the `embed` of another checkout of the project
is timed too, in a separate process that includes the start of Python.
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

import numpy as np

from bench import child
from bench.data import BLOOD_SMEAR, blood_smear_bags, require_cells
from bench.machine import layer_gflop, matmul_work
from bench.one_at_a_time import embed_one_at_a_time
from bench.tables import Measured, Table
from bench.timing import interleaved

ORIENTATIONS = 2
LOOP, PRODUCT, RANK, EMBED = "one at a time", "matrix product", "rank", "embed"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, default=BLOOD_SMEAR, help="class folders of cells")
    parser.add_argument("--cells", type=int, default=3_000, help="cells per round of embed and rank")
    parser.add_argument("--alone", type=int, default=1_024, help="cells per round of the engine alone")
    parser.add_argument("--one-by-one", type=int, default=96, help="cells per round of the loop")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--former", type=Path, help="a checkout of the project at another commit")
    parser.add_argument(
        "--former-cells",
        type=int,
        nargs=2,
        default=[200, 600],
        help="two numbers; the rate is that of their difference",
    )


def measure(options: argparse.Namespace) -> Measured:
    require_cells(options.data)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rates, ratios, engine = _measure(options, root)
        former = former_rate(options.former, options.data, root, *options.former_cells) if options.former else None
    results: dict[str, Any] = {"engine": engine, "cells_per_second": rates, "ratios": ratios}
    rows = [{"what": name, "cells/s": f"{rate:,.0f}"} for name, rate in rates.items()]
    if former:
        results["former"] = former
        rows += [
            {"what": "embed of the former recipe", "cells/s": f"{former:,.1f}"},
            {"what": "embed, times the former", "cells/s": f"{rates[EMBED] / former:,.1f}"},
            {"what": "rank, times the former", "cells/s": f"{rates[RANK] / former:,.1f}"},
        ]
    compared = [{"ratio": name, "median": f"{value:.2f}"} for name, value in ratios.items()]
    return Measured(results, (f"Engine: {engine}.", Table.of(*rows), Table.of(*compared)))


def _measure(options: argparse.Namespace, root: Path) -> tuple[dict[str, float], dict[str, float], str]:
    from cytomil.encoders.bundle import load_bundle
    from cytomil.encoders.engines import open_engine
    from cytomil.encoders.stages import layer_of
    from cytomil.features.embed import embed_in_orientations
    from cytomil.progress import Silent
    from cytomil.triage.config import RankConfig
    from cytomil.triage.rank import rank

    fitting = blood_smear_bags(options.data, root / "fitting", 80, train_bags=12)
    encoder, model = root / "encoder", root / "model"
    child.cytomil("pretrain", "--bags", fitting, "--out", encoder)
    child.cytomil("embed", "--bags", fitting, "--encoder", encoder, "--out", root / "fitted")
    child.cytomil("fit-mil", "--features", root / "fitted", "--encoder", encoder, "--out", model)
    bags = blood_smear_bags(options.data, root / "bags", options.cells // 2, train_bags=2)
    bundle = load_bundle(encoder)
    layer = layer_of("auto", bundle.encoder).embedded
    engine, eager = (open_engine(bundle, layer, name, "cpu", print) for name in ("auto", "eager"))
    files, pixels = decoded_cells(bags, options.data, bundle.transform, max(options.alone, options.one_by_one))
    numbers = count()

    def embedding() -> None:
        embed_bags(bags, encoder, root / f"features-{next(numbers)}")

    def ranking() -> None:
        settings = RankConfig(model=model, out=root / f"triage-{next(numbers)}", device="cpu")
        if any(slide.reason for slide in rank(bags, settings, Silent()).slides):
            raise SystemExit("a bag was not assessed")

    def alone(one: Any) -> Callable[[], object]:
        return lambda: embed_in_orientations(one.embed, pixels[: options.alone], ORIENTATIONS)

    candidates: dict[str, Callable[[], object]] = {
        LOOP: lambda: embed_one_at_a_time(
            files[: options.one_by_one], bundle.encoder, bundle.transform, layer, ORIENTATIONS
        ),
        "eager alone": alone(eager),
        f"{engine.name} alone": alone(engine),
        EMBED: embedding,
        RANK: ranking,
    }
    candidates[PRODUCT], product_gflop = matmul_work()
    timed = interleaved(candidates, options.repeats)
    n_whole = options.cells // 2 * 2
    cells = {LOOP: options.one_by_one, EMBED: n_whole, RANK: n_whole}
    # The cells that the network's products would take at peak speed.
    cells[PRODUCT] = product_gflop / (ORIENTATIONS * layer_gflop(bundle.encoder, layer, bundle.transform.image_size))
    per_cell = {name: timing.per(cells.get(name, options.alone)) for name, timing in timed.items()}
    ratios = {
        f"{whole} to {other}": per_cell[whole].times_faster_than(per_cell[other]).median
        for whole in (EMBED, RANK)
        for other in (f"{engine.name} alone", LOOP, PRODUCT)
    }
    return {name: timing.per_second(1).median for name, timing in per_cell.items()}, ratios, engine.key


def embed_bags(bags: Path, encoder: Path, out: Path, device: str = "cpu") -> None:
    """Run `embed` in this process."""
    from cytomil.features.config import EmbedConfig
    from cytomil.features.embed import embed
    from cytomil.progress import Silent

    embed(EmbedConfig(bags=bags, encoder=encoder, out=out, device=device), Silent())


def decoded_cells(bags: Path, data: Path, transform: Any, n: int) -> tuple[list[Path], np.ndarray]:
    """``n`` cells of the bags: their files, and their pixels, uint8 (n, S, S, 3)."""
    from cytomil.bags.bag_file import open_bag
    from cytomil.bags.instance_labels import read_instance_sources
    from cytomil.bags.manifest import read_manifest
    from cytomil.encoders.transform import decode_cells

    manifest = read_manifest(bags)
    row = manifest.rows[0]
    bag = open_bag(manifest.file_of(row))
    sources = list(read_instance_sources(manifest.file_of(row)).values())[:n]
    pixels, _, _ = decode_cells(bag.images(0, n), bag.instance_ids[:n], transform)
    return [data / source for source in sources], pixels


def former_rate(checkout: Path, data: Path, root: Path, few: int, many: int) -> float:
    """Cells per second of another checkout's default `embed`, from the difference of two runs to exclude start-up.

    Its encoder is trained for one epoch on few cells, because its speed does not depend on its weights.
    """
    seconds = {}
    encoder = root / "former-encoder"
    for n in (few, many):
        # The other checkout makes its own bags, because the schema of its bag files may differ.
        bags, features = root / f"former-{n}", root / f"former-features-{n}"
        classes = ["--normal", "neutrophil,eosinophil,lymphocyte,monocyte", "--abnormal", "ig,erythroblast,basophil"]
        drawn = ["--bag-size", str(n // 4), "--train-bags", "4", "--test-bags", "0", "--witness-rate", "0.2"]
        _former(checkout, "make-bags", str(data.resolve()), *classes, *drawn, "--out", bags)
        if not encoder.exists():
            _former(checkout, "pretrain", "--bags", bags, "--out", encoder, "--epochs", "1")
        started = time.perf_counter()
        _former(checkout, "embed", "--bags", bags, "--encoder", encoder, "--out", features)
        seconds[n] = time.perf_counter() - started
    return (many - few) / (seconds[many] - seconds[few])


def _former(checkout: Path, *line: str | Path) -> None:
    # It runs in its own folder, to read its own params.yaml.
    env = {"PYTHONPATH": str(checkout.resolve())}
    child.run([sys.executable, "-m", "cytomil", *line], (0, 3), env, checkout)
