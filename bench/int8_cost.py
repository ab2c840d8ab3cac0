"""What int8 costs in Recall@5 % and bag AUROC, on a briefly trained encoder and real blood-smear cells.

One encoder, compiled in int8 with training cells for calibration; one triage model, fitted to the eager engine's features.
It judges the same resampled bags of test cells by either engine's features; the cost is the difference, draw by draw.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.data import BLOOD_SMEAR, blood_smear_bags, require_cells
from bench.engines import compile_engines, copied_bundle
from bench.tables import Measured, SkippedError, Table
from bench.timing import Spread
from cytomil.bags.instance_labels import read_instance_labels
from cytomil.bags.manifest import read_manifest
from cytomil.encoders.bundle import EncoderBundle
from cytomil.evaluate.metrics import bag_metrics, recall_at_share
from cytomil.features.embed import embed
from cytomil.features.index import read_index
from cytomil.mil.ensemble import Ensemble
from cytomil.mil.fit import fit_mil
from cytomil.mil.triage_model import load_triage_model
from cytomil.pretrain.loop import pretrain
from cytomil.progress import Silent
from cytomil.settings import EmbedSettings, EngineName, FitMilSettings, PretrainSettings

ENGINE = "openvino-int8"
WANTED_POINTS = 1.0


@dataclass(frozen=True)
class Pool:
    """The test cells by both engines: embeddings (N, D) each, in the same order, and instance labels (N,)."""

    eager: np.ndarray
    compiled: np.ndarray
    labels: np.ndarray


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="?", type=Path, default=BLOOD_SMEAR, help="class folders of cells")
    parser.add_argument("--encoder", type=Path, help="a trained encoder bundle; default: train one here")
    parser.add_argument("--compiled", action="store_true", help="take the int8 engine that --encoder holds as it is")
    parser.add_argument("--image-size", type=int, default=32, help="of the encoder trained here, pixels")
    parser.add_argument("--epochs", type=int, default=4, help="of the encoder trained here")
    parser.add_argument("--layer", choices=["h", "z"], default="z")
    parser.add_argument("--bag-size", type=int, default=200, help="cells in a resampled test bag")
    parser.add_argument("--witness-rate", type=float, default=0.05, help="of a resampled positive bag")
    parser.add_argument("--bags", type=int, default=40, help="bags in a draw, half of them positive")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)


def measure(options: argparse.Namespace) -> Measured:
    require_cells(options.data)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bags = blood_smear_bags(options.data, root / "bags", 300, train_bags=12, test_bags=12, witness_rate=0.2)
        bundle = encoder(options, bags, root / "encoder")
        refused = compile_engines(bundle.path, bags, [ENGINE])
        if refused:
            raise SkippedError(f"{ENGINE} could not be had: {refused[ENGINE]}")
        eager, compiled = (embedded(options, bags, bundle, name, root / name) for name in ("eager", ENGINE))
        print("int8_cost: fitting the triage model", file=sys.stderr, flush=True)
        fit_mil(FitMilSettings(aggregator="pamil", features=eager, encoder=bundle.path, out=root / "model"), Silent())
        ensemble = load_triage_model(root / "model").ensemble
        pool = test_cells(bags, eager, compiled)
    print("int8_cost: judging resampled bags", file=sys.stderr, flush=True)
    rng = np.random.default_rng(options.seed)
    draws = [draw(pool, ensemble, rng, options) for _ in range(options.draws)]
    return _measured(draws, pool, bundle, options)


def encoder(options: argparse.Namespace, bags: Path, out: Path) -> EncoderBundle:
    if options.encoder:
        return copied_bundle(options.encoder, out, options.compiled)
    print(f"int8_cost: training {options.epochs} epochs at {options.image_size} px", file=sys.stderr, flush=True)
    settings = PretrainSettings(
        bags=bags,
        out=out,
        epochs=options.epochs,
        batch_size=128,
        image_size=options.image_size,
        arch="resnet18",
        weights="none",
        device="cpu",
    )
    return pretrain(settings, Silent()).bundle


def embedded(options: argparse.Namespace, bags: Path, bundle: EncoderBundle, engine: str, out: Path) -> Path:
    """Feature caches by ``engine``. Raises `SkippedError` where another one ran in its place."""
    settings = EmbedSettings(
        bags=bags,
        encoder=bundle.path,
        out=out,
        layer=options.layer,
        orientations=1,
        engine=EngineName(engine),
        device="cpu",
    )
    embed(settings, Silent())
    ran = read_index(out).open("test")[0][1].key.engine
    # A compiled engine's key tells more than its name: which compilation, which versions.
    if not ran.startswith(engine):
        raise SkippedError(f"{ran} ran in the place of {engine}")
    return out


def test_cells(bags: Path, eager: Path, compiled: Path) -> Pool:
    manifest = read_manifest(bags)
    file_of = {row.bag_id: manifest.file_of(row) for row in manifest.rows}
    by_engine = []
    for folder in (eager, compiled):
        opened = read_index(folder).open("test")
        by_engine.append(np.concatenate([features.load() for _, features in opened]))
    labels = []
    for row, features in opened:
        label_of = read_instance_labels(file_of[row.bag_id])
        labels += [label_of[name] for name in features.instance_ids]
    return Pool(by_engine[0], by_engine[1], np.array(labels))


def draw(
    pool: Pool, ensemble: Ensemble, rng: np.random.Generator, options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Recall@5 % (mean over positive bags) and bag AUROC of one draw of bags, by either engine's features; 0 to 1."""
    n_witnesses = max(1, round(options.witness_rate * options.bag_size))
    bags = [resampled(pool.labels, options.bag_size, n_witnesses * (i % 2), rng) for i in range(options.bags)]
    told = {}
    for name, values in (("eager", pool.eager), (ENGINE, pool.compiled)):
        assessed = [ensemble.assess(values[chosen]) for chosen in bags]
        recalls = [
            recall_at_share(one.scores, pool.labels[chosen], 0.05)
            for one, chosen in zip(assessed, bags, strict=True)
            if pool.labels[chosen].any()
        ]
        called = bag_metrics([one.probability for one in assessed], [i % 2 for i in range(len(bags))], threshold=0.5)
        assert called.auroc is not None
        told[name] = {"recall_at_5pct": float(np.mean(recalls)), "bag_auroc": called.auroc}
    return told


def resampled(labels: np.ndarray, size: int, n_witnesses: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of a bag of ``size`` cells, ``n_witnesses`` of them abnormal; no cell twice in one bag."""
    normal = rng.choice(np.flatnonzero(labels == 0), size - n_witnesses, replace=False)
    abnormal = rng.choice(np.flatnonzero(labels == 1), n_witnesses, replace=False)
    return np.concatenate([normal, abnormal])


def _measured(
    draws: list[dict[str, dict[str, float]]], pool: Pool, bundle: EncoderBundle, options: argparse.Namespace
) -> Measured:
    norms = np.linalg.norm(pool.eager, axis=1) * np.linalg.norm(pool.compiled, axis=1)
    cosine = (pool.eager * pool.compiled).sum(axis=1) / norms
    rows = []
    for key, name in (("recall_at_5pct", "Recall@5 %"), ("bag_auroc", "bag AUROC")):
        eager, compiled = ([one[engine][key] for one in draws] for engine in ("eager", ENGINE))
        costs = [100 * (a - b) for a, b in zip(eager, compiled, strict=True)]
        mean = float(np.mean(costs))
        rows.append(
            {
                "figure": name,
                "eager": f"{np.mean(eager):.3f}",
                "int8": f"{np.mean(compiled):.3f}",
                "cost, points": f"{mean:.2f}",
                "over draws": Spread.of(costs).shown(),
                "wanted": f"≤ {WANTED_POINTS:g}",
                "holds": "yes" if mean <= WANTED_POINTS else "no",
            }
        )
    n_abnormal, n_normal = int(pool.labels.sum()), int((pool.labels == 0).sum())
    told = (
        f"{options.draws} draws of {options.bags} bags of {options.bag_size} test cells, witness rate "
        f"{options.witness_rate:.0%}, {bundle.transform.image_size} px, layer {options.layer}; {n_abnormal} abnormal and "
        f"{n_normal:,} normal cells to draw from. Cosine of int8 to eager: mean {cosine.mean():.4f}, worst "
        f"{cosine.min():.4f}. Cost is the mean over draws, beside it the median, lowest and highest; below 0, int8 is better."
    )
    results: dict[str, Any] = {
        "draws": draws,
        "cosine": {"mean": float(cosine.mean()), "worst": float(cosine.min())},
        "method": bundle.card["method"],
    }
    return Measured(results, (told, Table.of(*rows)))
