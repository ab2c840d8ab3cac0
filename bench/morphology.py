"""The cost of layer morphology: describing cells, compared with decoding and embedding them, on one core.

Cells are evenly spaced among the files of each data folder. "embedded" is the default layer, by the eager engine at
--image-size px, averaged over --orientations orientations. Random weights do not change the speed. Rates are cells per
second of processor time, so that other work on the machine affects only the caches.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.cell_features import IMAGES
from bench.data import BLOOD_SMEAR, BONE_MARROW, require_cells
from bench.tables import Measured, Table
from bench.timing import Timing, interleaved
from cytomil.encoders.architecture import Encoder, resolve_architecture
from cytomil.encoders.bundle import load_bundle, save_bundle
from cytomil.encoders.engines import open_engine
from cytomil.encoders.stages import default_layer
from cytomil.encoders.transform import CellTransform, decode_cells, decode_cells_for
from cytomil.features.embed import embed_in_orientations
from cytomil.morphology.measure import N_DESCRIPTORS, SIDE, describe

_CROP = 0.8


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="*", type=Path, default=[BLOOD_SMEAR, BONE_MARROW], help="folders of cells")
    parser.add_argument("--cells", type=int, default=512, help="cells of each folder")
    parser.add_argument("--arch", default="efficientnet_lite0")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--orientations", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)


def measure(options: argparse.Namespace) -> Measured:
    for folder in options.data:
        require_cells(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as made:
            timings_of = {folder.name: _timings(folder, Path(made), options) for folder in options.data}
    finally:
        torch.set_num_threads(threads)
    rates = {
        name: {step: one.per_second(options.cells) for step, one in timings.items()}
        for name, timings in timings_of.items()
    }
    steps = next(iter(rates.values()))
    table = Table.of(
        *({"step, cells/s": step} | {name: of[step].shown(0) for name, of in rates.items()} for step in steps)
    )
    ratios = {name: of["described"].times_faster_than(of["embedded"]) for name, of in timings_of.items()}
    text = (
        f"{options.cells} cells of each set, {N_DESCRIPTORS} numbers each; embedded at {options.image_size} px in "
        f"{options.orientations} orientations; one core. Describing is "
        f"{', '.join(ratio.shown(1) for ratio in ratios.values())} times as fast as embedding."
    )
    results: dict[str, Any] = {
        name: {"seconds": {step: list(one.seconds) for step, one in timings.items()}}
        for name, timings in timings_of.items()
    }
    for name, ratio in ratios.items():
        results[name]["described_over_embedded"] = ratio.median
    return Measured({"cells": options.cells, "sets": results}, (text, table))


def _timings(folder: Path, made: Path, options: argparse.Namespace) -> dict[str, Timing]:
    files = sorted(file for file in folder.rglob("*") if file.suffix in IMAGES)
    chosen = np.linspace(0, len(files) - 1, options.cells).astype(int)
    images, names = [files[i].read_bytes() for i in chosen], [str(i) for i in range(options.cells)]
    small, large = CellTransform(options.image_size, _CROP), CellTransform(SIDE, _CROP)
    encoder = Encoder(resolve_architecture(options.arch, "auto", 128, options.image_size))
    save_bundle(made / folder.name, encoder, small, {"method": "none"})
    engine = open_engine(load_bundle(made / folder.name), default_layer(encoder), "eager", "cpu", print)
    (to_embed, to_describe), _, _ = decode_cells_for(images, names, [small, large])
    return interleaved(
        {
            f"decoded, at {options.image_size} px": lambda: decode_cells(images, names, small),
            f"decoded, at {options.image_size} and {SIDE} px": lambda: decode_cells_for(images, names, [small, large]),
            "described": lambda: describe(to_describe),
            "embedded": lambda: embed_in_orientations(engine.embed, to_embed, options.orientations),
        },
        options.repeats,
        clock=time.process_time,
    )
