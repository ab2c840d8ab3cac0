"""compile: build an engine, compare it with eager on real cells, and keep it in the bundle if it agrees."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from cytomil.bags.manifest import open_listed, read_manifest
from cytomil.encoders.bundle import ENGINES_FOLDER, EncoderBundle, load_bundle, pick_device, stored_engines
from cytomil.encoders.engines import ncnn, openvino, tensorrt, torch_compile
from cytomil.encoders.engines.agreement import LEAST_CELLS, agreement, refusal
from cytomil.encoders.engines.config import CompileConfig
from cytomil.encoders.engines.eager import EagerEngine
from cytomil.encoders.engines.engine import Engine, batch_of
from cytomil.encoders.engines.record import EngineRecord, engine_name, machine, versions_of
from cytomil.encoders.engines.select import start_engine
from cytomil.encoders.stages import layer_of
from cytomil.encoders.transform import CellTransform, decode_cells
from cytomil.errors import BagFileError, EngineError, EngineRefusedError
from cytomil.files import replacing_folder, sha256_of_file
from cytomil.layer import Layer
from cytomil.progress import Listener
from cytomil.provenance import code_fingerprint, now


def training_cells(bags: Path, transform: CellTransform, n: int, least: int, seed: int) -> np.ndarray:
    """Up to ``n`` cells drawn at random from all training bags, uint8 (m, S, S, 3); unreadable ones are left out.

    Raises `EngineError` where fewer than ``least`` can be had, `NotFoundError` or `BagFileError` for the bags.
    """
    manifest = read_manifest(bags)
    opened = [open_listed(manifest, row) for row in manifest.rows if row.split == "train"]
    places = [(bag, i) for bag in opened for i in range(len(bag))]
    drawn = sorted(np.random.default_rng(seed).permutation(len(places))[:n])
    chosen = [places[i] for i in drawn]
    encoded = [bag.images(i, i + 1)[0] for bag, i in chosen]
    pixels, _, _ = decode_cells(encoded, [bag.instance_ids[i] for bag, i in chosen], transform)
    if len(pixels) < least:
        raise EngineError(
            f"{bags} has {len(pixels)} readable cells in training bags; compiling takes at least {least}. "
            "Name bags with more cells with --bags."
        )
    # Drawn in the order of the bags, they are mixed again, so that halves of them are alike.
    return pixels[np.random.default_rng(seed).permutation(len(pixels))]


_REPEATS = 5


def images_per_second(engine: Engine, eager: Engine, pixels: np.ndarray) -> tuple[float, float]:
    """Medians over five turns on ``pixels``, uint8 (N, S, S, 3), after one that does not count."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(_REPEATS + 1):
        for runner, taken in zip((engine, eager), seconds, strict=True):
            start = time.perf_counter()
            runner.embed(pixels)
            taken.append(time.perf_counter() - start)
    ours, theirs = (len(pixels) / median(taken[1:]) for taken in seconds)
    return ours, theirs


_PRECISIONS = {
    "openvino": openvino.PRECISIONS,
    "ncnn": ncnn.PRECISIONS,
    "tensorrt": tensorrt.PRECISIONS,
    "torch-compile": torch_compile.PRECISIONS,
}
_CALIBRATION_CELLS = 300
_TIMED_BATCHES = 8


def compile_engine(settings: CompileConfig, listener: Listener) -> EngineRecord:
    """Compile, compare, measure, store. Returns the stored engine's record.

    Raises `EngineError` for an engine that cannot be built here or is refused (nothing is stored then, and one stored
    before stays), `EncoderBundleError`, `BagFileError` or `NotFoundError` for what it is made from.
    """
    engine, asked = settings.engine.value, settings.precision.value
    if asked not in ("auto", *_PRECISIONS[engine]):
        raise EngineError(f"{engine} has no precision {asked}. Use --precision {' or '.join(_PRECISIONS[engine])}.")
    if asked != "auto":
        return _compile(settings, engine, asked, listener)
    if engine == "openvino" and openvino.has_bf16():
        try:
            return _compile(settings, engine, "bf16", listener)
        except EngineRefusedError as error:
            listener.note(f"{error} float32 is compiled in its place.")
    return _compile(settings, engine, "fp16" if engine == "tensorrt" else "float32", listener)


def compile_by_default(encoder: Path, bags: Path, seed: int, device: str, listener: Listener) -> EngineRecord | None:
    """Compile a finished encoder for this processor, unless it has an engine already or a GPU runs it.

    Returns None if nothing was compiled. If compilation fails, ``listener`` gets one line.
    """
    if stored_engines(encoder) or pick_device(device).type != "cpu":
        return None
    settings = CompileConfig(encoder=encoder, bags=bags, seed=seed)
    try:
        return compile_engine(settings, listener)
    except (EngineError, BagFileError) as error:
        listener.note(f"No engine was compiled: {error} embed and rank run eager, several times slower.")
        return None


def _compile(settings: CompileConfig, engine: str, precision: str, listener: Listener) -> EngineRecord:
    bundle = load_bundle(settings.encoder)
    layers = tuple(dict.fromkeys(layer_of(word, bundle.encoder).embedded for word in settings.layer.split()))
    device = _device_of(engine, settings.device)
    versions = versions_of(engine)
    n_calibration = _CALIBRATION_CELLS if precision == "int8" else 0
    if n_calibration:
        _require_nncf()
    least = 2 * LEAST_CELLS if n_calibration else LEAST_CELLS
    cells = training_cells(settings.bags, bundle.transform, settings.cells + n_calibration, least, settings.seed)
    # No cell both calibrates and judges; where the bags hold few, each gets half of them.
    split = min(n_calibration, len(cells) // 2)
    calibration, held_back = cells[:split], cells[split:]
    name = engine_name(engine, precision)
    with replacing_folder(settings.encoder / ENGINES_FOLDER / name) as folder:
        listener.note(f"compiling {name}; this can take a minute or more")
        facts = _build(bundle, layers, engine, precision, calibration, folder, device)
        record = EngineRecord(
            engine=engine,
            precision=precision,
            weights_sha256=bundle.sha256,
            image_size=bundle.transform.image_size,
            device=device.type,
            machine=machine(device),
            versions=versions,
            files={path.name: sha256_of_file(path) for path in sorted(folder.iterdir())},
            layers=[str(layer) for layer in layers],
            agreement={},
            images_per_second=0.0,
            eager_images_per_second=1.0,
            facts=facts | {"made": now(), "code": code_fingerprint("encoders")[:12], "seed": settings.seed},
        )
        record = _measured(record, bundle, layers, folder, held_back, device, listener)
        record.write(folder)
    return record


def _require_nncf() -> None:
    """Raise `EngineError` where nncf, which calibrates int8, is not installed."""
    from importlib.util import find_spec

    if find_spec("nncf") is None:
        raise EngineError("int8 is calibrated with nncf, which is not installed; pip install 'cytomil[int8]'.")


def _device_of(engine: str, asked: str) -> torch.device:
    if engine in ("openvino", "ncnn"):
        return torch.device("cpu")
    device = pick_device(asked)
    if engine == "tensorrt" and device.type != "cuda":
        raise EngineError("tensorrt needs an NVIDIA GPU, and PyTorch finds none. Use --engine openvino on a processor.")
    return device


def _build(
    bundle: EncoderBundle,
    layers: Sequence[Layer],
    engine: str,
    precision: str,
    calibration: np.ndarray,
    folder: Path,
    device: torch.device,
) -> dict[str, Any]:
    size = bundle.transform.image_size
    # A copy, because a compiler may change the precision or the layout of what it is given.
    encoder = copy.deepcopy(bundle.encoder)
    if engine == "openvino":
        return openvino.build(encoder, layers, size, precision, calibration, folder)
    if engine == "ncnn":
        return ncnn.build(encoder, layers, size, folder)
    if engine == "tensorrt":
        return tensorrt.build(encoder, layers, size, precision, folder, device)
    return {}


def _measured(
    record: EngineRecord,
    bundle: EncoderBundle,
    layers: Sequence[Layer],
    folder: Path,
    cells: np.ndarray,
    device: torch.device,
    listener: Listener,
) -> EngineRecord:
    """The record with agreement and speed. Raises `EngineError` where the engine is refused."""
    found: dict[str, dict[str, float]] = {}
    for layer in listener.track(layers, f"comparing {record.name} with eager", unit="layers"):
        engine, eager = _pair(record, bundle, folder, layer, device)
        figures = found[str(layer)] = agreement(eager.embed(cells), engine.embed(cells))
        why = refusal(figures, record.precision)
        if why:
            raise EngineRefusedError(
                f"{record.name} disagrees with eager on {len(cells)} cells (layer {layer}: {why}); nothing is stored. "
                "Use another --precision."
            )
    # Several batches, or an engine that works on some at once would wait for its own first one.
    timed = np.resize(cells, (_TIMED_BATCHES * batch_of(record.image_size), *cells.shape[1:]))
    ours, theirs = images_per_second(engine, eager, timed)
    if record.engine == "torch-compile" and ours <= theirs:
        raise EngineError(
            f"torch-compile is no faster here than eager ({ours:.0f} images/s against {theirs:.0f}); nothing is stored."
        )
    return replace(record, agreement=found, images_per_second=ours, eager_images_per_second=theirs)


def _pair(
    record: EngineRecord, bundle: EncoderBundle, folder: Path, layer: Layer, device: torch.device
) -> tuple[Engine, Engine]:
    eager = EagerEngine(copy.deepcopy(bundle.encoder), layer, device)
    return start_engine(record, folder, bundle, layer, device), eager
