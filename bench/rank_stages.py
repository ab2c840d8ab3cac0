"""Ranking one slide: each stage alone, and all of them at the same time.

    python -m bench rank_stages [--cells 20000] [--image-size 224] [--engine auto] [--repeats 3]

A synthetic pyramidal slide full of cells. Stages: finding the cells; cutting them out, decoding and bringing to size;
inference on pixels in memory; writing the feature cache. "Together" goes from the slide's file to the finished cache. The
encoder has random weights, on which its speed does not depend. Every round takes each in turn.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import numpy as np

from bench.synthetic_slides import write_synthetic
from bench.tables import Measured, Table
from bench.timing import interleaved
from cytomil.encoders.architecture import Architecture, Encoder, resolve_stem
from cytomil.encoders.bundle import load_bundle, save_bundle
from cytomil.encoders.engines import open_engine
from cytomil.encoders.transform import CellTransform
from cytomil.features.cache import EmbeddedBlock, write_features
from cytomil.features.embedder import Embedder
from cytomil.layer import Layer
from cytomil.slides import Cutting, Resolutions
from cytomil.slides.find import find_cells
from cytomil.triage.whole_slide import SlideReading, WholeSlide

_BATCH = 256
_TILE, _CELLS_A_TILE = 512, 64


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--image-size", type=int, default=224, help="px")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--repeats", type=int, default=3)


def measure(options: argparse.Namespace) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        side = _TILE * math.ceil(math.sqrt(options.cells / _CELLS_A_TILE))
        write_synthetic(root / "slide.tif", side, tile=_TILE)
        return _measure(root, options)


def _measure(root: Path, options: argparse.Namespace) -> Measured:
    transform = CellTransform(options.image_size, 0.8)
    encoder = Encoder(Architecture(stem=resolve_stem("auto", options.image_size)))
    save_bundle(root / "encoder", encoder, transform, {"method": "none"})
    bundle = load_bundle(root / "encoder")
    engine = open_engine(bundle, Layer("h"), options.engine, "auto", print)
    embedder = Embedder(bundle, engine, Layer("h"), "float32")
    cutting = Cutting(12.0, math.ceil(options.image_size / transform.center_crop))

    def slide(cache: Path) -> WholeSlide:
        return WholeSlide(root / "slide.tif", SlideReading(cutting, Resolutions(), cache))

    found = slide(root / "found")
    n = len(found.cells())
    block = next(found.blocks(embedder.preparation, _BATCH))
    values = engine.embed(block.pixels)
    n_blocks = math.ceil(n / _BATCH)
    written = EmbeddedBlock(block.instance_ids, block.coords, values)

    def feed() -> None:
        for _ in slide(root / "found").blocks(embedder.preparation, _BATCH):
            pass

    def infer() -> None:
        for _ in range(n_blocks):
            engine.embed(block.pixels)

    def write() -> None:
        write_features(root / "w.h5", "w", embedder.key("w"), engine.dim, (written for _ in range(n_blocks)))

    def together() -> None:
        with tempfile.TemporaryDirectory(dir=root) as cache:
            embedder.embed(Path(cache) / "t.h5", "t", "t", slide(Path(cache)).blocks(embedder.preparation, _BATCH))

    stages = {
        "find": lambda: find_cells(root / "slide.tif", cutting.finding),
        "cut, decode, resize": feed,
        f"inference ({engine.name})": infer,
        "write": write,
    }
    timings = interleaved({**stages, "together": together}, options.repeats, warm_up=0)
    slowest = max(stages, key=lambda name: timings[name].spread.median)
    one_by_one = float(np.median(np.sum([timings[name].seconds for name in stages], axis=0)))
    ratio = timings[slowest].times_faster_than(timings["together"])
    rows = [
        {
            "stage": name,
            "seconds": timing.spread.shown(1),
            "cells/s": f"{timing.per_second(n).median:,.0f}",
        }
        for name, timing in timings.items()
    ]
    results = {
        "cells": n,
        "seconds": {name: list(timing.seconds) for name, timing in timings.items()},
        "slowest": slowest,
        "together_over_slowest": ratio.median,
        "one_by_one_over_slowest": one_by_one / timings[slowest].spread.median,
    }
    told = (
        f"{n:,} cells of one slide, {options.image_size} px, medians of {options.repeats} interleaved rounds. Together "
        f"they take {ratio.shown()} times as long as the slowest stage alone ({slowest}); one after another they would take "
        f"{results['one_by_one_over_slowest']:.2f} times as long."
    )
    return Measured(results, (Table.of(*rows), told))
