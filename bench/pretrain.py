"""Views per second of pretraining compared with a plain loop like the released code, and the cost of gradient surgery.

Candidates take complete steps alternately on the same real JPEGs, with the same model, losses and batch. They are
``reference`` (see `bench.reference_pretrain`) and cytomil's step in float32 and bf16, including views. cytomil's steps do
not include decoding, which is done once per run. Surgery consists of copying the tasks' gradients into one matrix and
combining them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bench.data import BLOOD_SMEAR, require_cells
from bench.tables import Measured, Table
from bench.timing import interleaved

# Cells per step, with two views each, that fit in the memory of a small machine.
BATCH_SIZES = {32: 128, 64: 64, 224: 16}
_SCALE = 0.04
_OBJECTIVE: dict[str, Any] = {
    "method": "slam-ags",
    "options": {"slam-ags": {"objective": "paper", "similarity_scale": _SCALE}},
    "arch": "resnet18",
    "weights": "none",
    "image_size": 32,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="?", type=Path, default=BLOOD_SMEAR, help="class folders of cells")
    parser.add_argument("--sizes", nargs="+", type=int, default=sorted(BATCH_SIZES), help="image sides, pixels")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of one step each")


def measure(options: argparse.Namespace) -> Measured:
    require_cells(options.data)
    results: dict[str, Any] = {}
    rows = []
    for size in options.sizes:
        found = results[str(size)] = measure_size(options.data, size, options.repeats)
        rows += [{"px": str(size), "loop": name, **row} for name, row in found["shown"].items()]
    text = (
        "Medians of interleaved steps (min to max), ratios within rounds. One view is one image through the network, "
        "forward and backward."
    )
    return Measured(results, (text, Table.of(*rows)))


def measure_size(data: Path, size: int, repeats: int) -> dict[str, Any]:
    batch_size = BATCH_SIZES.get(size, 16)
    encoded = [path.read_bytes() for path in sorted(data.rglob("*.jpg"))[:: max(1, 17_000 // batch_size)][:batch_size]]
    surgery: dict[str, list[float]] = {}
    candidates: dict[str, Callable[[], object]] = {"reference": reference_step(encoded, size)}
    for precision in ("float32", "bf16"):
        candidates[precision] = own_step(encoded, size, precision, surgery.setdefault(precision, []))
    timings = interleaved(candidates, repeats)
    views = 2 * len(encoded)
    shown, figures = {}, {}
    for name, timing in timings.items():
        ratio = timing.times_faster_than(timings["reference"])
        spent = surgery.get(name, [])[-repeats:]
        fraction = median(s / t for s, t in zip(spent, timing.seconds, strict=True)) if spent else None
        shown[name] = {
            "views/s": timing.per_second(views).shown(1),
            "× reference": ratio.shown(),
            "surgery, % of step": "–" if fraction is None else f"{100 * fraction:.1f}",
        }
        figures[name] = {
            "views_per_second": timing.per_second(views).median,
            "times_reference": ratio.median,
            "surgery_share": fraction,
            "seconds": timing.seconds,
        }
    return {"batch_size": batch_size, "figures": figures, "shown": shown}


def reference_step(encoded: list[bytes], size: int) -> Callable[[], object]:
    from bench.reference_pretrain import ReferenceLoop
    from cytomil.encoders.architecture import Architecture, Encoder, resolve_stem
    from cytomil.training.config import PretrainConfig

    settings = PretrainConfig(**_OBJECTIVE)
    encoder = Encoder(Architecture(stem=resolve_stem("auto", size)))
    loop = ReferenceLoop(encoder, size, settings.crop_scale, settings.jitter, _SCALE)
    half = len(encoded) // 2
    return lambda: loop.step(encoded[:half], encoded[half:])


def own_step(encoded: list[bytes], size: int, precision: str, surgery: list[float]) -> Callable[[], object]:
    """A step of cytomil. The seconds of its surgery are appended to ``surgery``."""
    import torch

    from cytomil.encoders.architecture import resolve_architecture
    from cytomil.encoders.start import prepare_initialisation
    from cytomil.encoders.transform import CellTransform, decode_cells
    from cytomil.training.cells import TrainingCells
    from cytomil.training.checkpoint import RunIdentity
    from cytomil.training.config import PretrainConfig
    from cytomil.training.methods import load_method
    from cytomil.training.processes import OneProcess
    from cytomil.training.run import Run

    pixels, _, _ = decode_cells(encoded, [str(i) for i in range(len(encoded))], CellTransform(size, 1.0))
    is_positive = torch.arange(len(encoded)) >= len(encoded) // 2
    settings = PretrainConfig.model_validate(
        {**_OBJECTIVE, "image_size": size, "batch_size": len(encoded), "precision": precision}
    )
    bag = is_positive.long()
    cells = TrainingCells(torch.from_numpy(pixels), is_positive, bag, bag, ())
    make_method = partial(load_method(settings.method), settings, cells=cells)
    start = prepare_initialisation(
        resolve_architecture(settings.arch, "auto", settings.projection_dim, size, settings.projector), size
    )
    run = Run(settings, RunIdentity({}, "", {}), cells, OneProcess(torch.device("cpu")), None, make_method, start)
    run.encoder.train()
    generator = torch.Generator().manual_seed(0)
    combined_gradient = run.step.combined_gradient

    def timed(*arguments: Any) -> Any:
        started = time.perf_counter()
        update = combined_gradient(*arguments)
        surgery.append(time.perf_counter() - started)
        return update

    run.step.combined_gradient = timed  # type: ignore[assignment, method-assign]
    indices = torch.arange(len(encoded))
    return lambda: run.step(run.batch(indices, generator), 0.001)
