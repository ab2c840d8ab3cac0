"""What layer morphology costs: describing cells beside embedding them, both on one core.

Cells of two simulated blood-smear bags. "embedded" is what layer auto keeps, by the eager engine at --image-size px,
averaged over --orientations orientations, of a ResNet-18 with weights at random, which changes no speed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from bench.data import BLOOD_SMEAR, blood_smear_bags, require_cells
from bench.tables import Measured, Table
from bench.timing import interleaved
from cytomil.bags.bag_file import open_bag
from cytomil.bags.manifest import read_manifest
from cytomil.encoders.architecture import Architecture, Encoder, resolve_stem
from cytomil.encoders.bundle import load_bundle, save_bundle
from cytomil.encoders.engines import open_engine
from cytomil.encoders.stages import default_layer
from cytomil.encoders.transform import CellTransform, decode_cells
from cytomil.features.orientations import embed_in_orientations
from cytomil.morphology.descriptors import N_DESCRIPTORS, SIDE, describe

_CROP = 0.7


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="?", type=Path, default=BLOOD_SMEAR, help="class folders of cells")
    parser.add_argument("--cells", type=int, default=256)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--orientations", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)


def measure(options: argparse.Namespace) -> Measured:
    require_cells(options.data)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as made:
            return _measure(Path(made), options)
    finally:
        torch.set_num_threads(threads)


def _measure(root: Path, options: argparse.Namespace) -> Measured:
    bags = read_manifest(blood_smear_bags(options.data, root / "bags", -(-options.cells // 2), train_bags=2))
    images = [image for row in bags.rows for image in open_bag(bags.file_of(row)).images()][: options.cells]
    names = [str(i) for i in range(len(images))]
    transform = CellTransform(options.image_size, _CROP)
    encoder = Encoder(Architecture(stem=resolve_stem("auto", options.image_size)))
    save_bundle(root / "encoder", encoder, transform, {"method": "none"})
    engine = open_engine(load_bundle(root / "encoder"), default_layer(encoder), "eager", "cpu", print)
    small, large = (decode_cells(images, names, CellTransform(side, _CROP))[0] for side in (options.image_size, SIDE))
    timings = interleaved(
        {
            f"decoded again, at {SIDE} px": lambda: decode_cells(images, names, CellTransform(SIDE, _CROP)),
            "described": lambda: describe(large),
            "embedded": lambda: embed_in_orientations(engine.embed, small, options.orientations),
        },
        options.repeats,
    )
    rates = {name: timing.per_second(len(images)) for name, timing in timings.items()}
    ratio = timings["described"].times_faster_than(timings["embedded"])
    told = (
        f"{len(images)} cells, {N_DESCRIPTORS} numbers each; embedded at {options.image_size} px in {options.orientations} "
        f"orientations; one core. Describing goes {ratio.shown()} times as fast as embedding."
    )
    table = Table.of(*({"step": name, "cells/s": rate.shown(0)} for name, rate in rates.items()))
    results = {
        "cells": len(images),
        "seconds": {name: list(timing.seconds) for name, timing in timings.items()},
        "described_over_embedded": ratio.median,
    }
    return Measured(results, (told, table))
