"""engine.json: what a stored engine was compiled for, whether it can run here, and how far it may differ from eager."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from cytomil.cards import Card, Count, Number, Text, read_card
from cytomil.encoders.bundle import ENGINE_CARD_NAME, EncoderBundle
from cytomil.encoders.engines.engine import Backend, CompiledForm
from cytomil.encoders.engines.registry import load_backend
from cytomil.errors import EngineError, SettingsError
from cytomil.files import sha256_of_file, sha256_of_json, write_json_card
from cytomil.layer import Layer

SCHEMA = "cytomil.engine/2"


class EngineRecord(Card):
    """The content of engine.json.

    Args:
        name: the name of its folder, such as openvino-int8 or torch-compile.
        engine: the name of its backend.
        precision: its number format.
        weights_sha256: hash of the encoder's weights.
        image_size: side of a cell in pixels.
        device: cpu or cuda.
        machine: the processor or GPU on which it was compiled and measured.
        versions: the versions of its libraries.
        files: SHA-256 of each of its files.
        layers: the layers that it computes, in this order.
        agreement: the agreement with eager, per layer.
        images_per_second: its speed on that machine.
        eager_images_per_second: eager's speed, measured alternately.
        facts: further metadata.
    """

    name: Text
    engine: Text
    precision: Text
    weights_sha256: Text
    image_size: Count
    device: Text
    machine: dict[str, Text]
    versions: dict[str, Text]
    files: dict[str, Text]
    layers: list[Text]
    agreement: dict[str, dict[str, Number]]
    images_per_second: Number
    eager_images_per_second: Annotated[Number, Field(gt=0)]
    facts: dict[str, Any] = Field(default_factory=dict)

    @property
    def key(self) -> str:
        """Its name in feature caches. It contains a hash of the files, because another calibration changes embeddings."""
        return f"{self.name}@{sha256_of_json(self.files)[:8]}" if self.files else self.name

    @property
    def gain(self) -> float:
        """Its speed as a multiple of eager's, on the machine that compiled it."""
        return self.images_per_second / self.eager_images_per_second

    def write(self, folder: Path) -> None:
        """Write engine.json into ``folder``."""
        write_json_card(folder / ENGINE_CARD_NAME, {"schema": SCHEMA} | self.to_json())


def read_record(folder: Path) -> EngineRecord:
    """Read engine.json. Raises `EngineError` if it is missing, damaged, or of another schema."""
    return read_card(folder / ENGINE_CARD_NAME, EngineRecord, SCHEMA, EngineError, "cytomil compile")


def require_valid(record: EngineRecord, folder: Path, bundle: EncoderBundle, device: torch.device) -> None:
    """Raise `EngineError` with the reason unless the engine belongs to this encoder and can run here."""
    if record.weights_sha256 != bundle.sha256:
        raise EngineError("compiled for other weights")
    if record.image_size != bundle.transform.image_size:
        raise EngineError(f"compiled for cells of {record.image_size} px")
    if record.device != device.type:
        raise EngineError(f"compiled for {record.device}, not for {device.type}")
    backend = backend_of(record)
    installed = backend.versions()
    for library, version in record.versions.items():
        if installed.get(library) != version:
            raise EngineError(f"compiled with {library} {version}, but {installed.get(library)} is installed")
    if record.machine != machine(device) and not backend.is_portable(record.precision):
        raise EngineError(f"compiled on another machine ({', '.join(record.machine.values())})")
    if why := backend.why_not_run(record.precision):
        raise EngineError(why)
    for name, sha256 in record.files.items():
        if not (folder / name).is_file() or sha256_of_file(folder / name) != sha256:
            raise EngineError(f"its {name} is missing or damaged")


def form_of(record: EngineRecord, folder: Path, bundle: EncoderBundle, device: torch.device) -> CompiledForm:
    """The compiled form in ``folder``, which the record describes."""
    layers = tuple(Layer.parse(layer) for layer in record.layers)
    return CompiledForm(record.name, bundle.encoder, layers, record.image_size, record.precision, device, folder)


def backend_of(record: EngineRecord) -> Backend:
    """The backend that runs the engine. Raises `EngineError` if it is not installed here."""
    try:
        return load_backend(record.engine)
    except SettingsError as error:
        raise EngineError(f"its backend cannot be loaded: {error}") from None


def machine(device: torch.device) -> dict[str, str]:
    """What compiled code depends on: the name of the GPU, or the name and vector instructions of the processor."""
    if device.type == "cuda":
        return {"gpu": torch.cuda.get_device_name(device)}
    return {"processor": _processor(), "instructions": torch.backends.cpu.get_cpu_capability()}


@cache
def _processor() -> str:
    """The name of the processor and its units that change results in 8 and 16 bits: AMX, VNNI and bfloat16."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        import platform

        return platform.processor() or platform.machine()
    known = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {key.strip(): value.strip() for key, value in known.items()}
    units = [
        name
        for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
        if name in fields.get("flags", "").split()
    ]
    return " ".join([fields.get("model name", "unknown"), *units])


MIN_CELLS = 40
MIN_COSINE_FLOAT = 0.999
MIN_COSINE_BF16 = 0.99
MIN_MEAN_COSINE_INT8 = 0.98
MIN_OVERLAP_INT8 = 0.95
_TOP_FRACTION = 0.05
_NEIGHBOURS = 5  # as in the aggregator knn


def agreement(eager: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Compare two engines' embeddings (N, D) of the same cells: min and mean cosine, and `top_overlap`.

    All are NaN if the other's embeddings are not finite. `refusal` refuses NaN.
    """
    if not np.isfinite(other).all():
        return {"cells": len(eager)} | dict.fromkeys(("min_cosine", "mean_cosine", "top_overlap"), math.nan)
    norms = np.linalg.norm(eager, axis=1) * np.linalg.norm(other, axis=1)
    cosines = (eager * other).sum(1, dtype=np.float64) / np.maximum(norms, np.finfo(np.float32).tiny)
    return {
        "cells": len(eager),
        "min_cosine": float(cosines.min()),
        "mean_cosine": float(cosines.mean()),
        "top_overlap": top_overlap(eager, other),
    }


def refusal(figures: dict[str, float], precision: str) -> str:
    """Why an engine of this precision with these figures is refused; empty if it is not. NaN is refused."""
    if precision == "int8":
        if not figures["mean_cosine"] >= MIN_MEAN_COSINE_INT8:
            return f"mean cosine {figures['mean_cosine']:.4f}, the minimum is {MIN_MEAN_COSINE_INT8}"
        if not figures["top_overlap"] >= MIN_OVERLAP_INT8:
            return f"top-5 % overlap {figures['top_overlap']:.3f}, the minimum is {MIN_OVERLAP_INT8}"
        return ""
    minimum = MIN_COSINE_BF16 if precision == "bf16" else MIN_COSINE_FLOAT
    if not figures["min_cosine"] >= minimum:
        return f"min cosine {figures['min_cosine']:.6f}, the minimum is {minimum}"
    return ""


def top_overlap(eager: np.ndarray, other: np.ndarray) -> float:
    """Fraction of the top 5 % of cells that both engines have in common: the mean over two scores that need no labels.

    `rank` shows the few per cent of a slide's cells with the highest scores, so these must stay the same. The scores are the
    Mahalanobis distance from the cells (Ledoit-Wolf covariance) and the mean distance to the five nearest other cells. Both
    are fitted to eager's embeddings (N, D) and applied to either engine's, because a triage model may be older than the
    engine.
    """
    scores = (_distance_from(eager), lambda cells: _neighbour_distance(cells, eager))
    return float(np.mean([_shared_top(score(eager), score(other)) for score in scores]))


def _distance_from(eager: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Squared Mahalanobis distances (M,) of cells (M, D) from ``eager``'s (N, D), whose covariance is shrunk.

    It uses the singular values of the few cells. The D × D covariance would be large for layers with thousands of numbers.
    Along the cells' axes the variance is (1 - s) λ + s μ, and in all other directions it is s μ (Ledoit and Wolf, 2004).
    Axes whose variance is below the rounding error of the embeddings are ignored, as in scikit-learn's pseudo-inverse.
    Along them, the rounding of an engine would outweigh all differences between cells.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    mean = eager.mean(axis=0, dtype=np.float64)
    centred = eager - mean
    shrinkage = ledoit_wolf_shrinkage(centred, assume_centered=True)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    eigenvalues = singular**2 / len(eager)
    floor = shrinkage * eigenvalues.sum() / eager.shape[1]
    variances = (1 - shrinkage) * eigenvalues + floor
    rounding = np.finfo(eager.dtype).eps * eager.shape[1] * variances.max()

    def distance(cells: np.ndarray) -> np.ndarray:
        offsets = cells - mean
        along_axes = (offsets @ axes.T) ** 2
        residual = np.maximum((offsets**2).sum(axis=1) - along_axes.sum(axis=1), 0)
        return along_axes @ _inverse(variances, rounding) + residual * _inverse(floor, rounding)

    return distance


def _inverse(variance: np.ndarray | float, rounding: float) -> np.ndarray:
    """1 / variance; 0 if the variance is not above ``rounding``, as in a pseudo-inverse."""
    return np.divide(
        1.0, variance, out=np.zeros_like(variance, dtype=np.float64), where=np.asarray(variance) > rounding
    )


def _neighbour_distance(cells: np.ndarray, eager: np.ndarray) -> np.ndarray:
    """Mean distance (N,) of each of ``cells`` to its nearest in ``eager``, both (N, D), excluding its counterpart."""
    from scipy.spatial.distance import cdist

    distances = cdist(cells, eager)
    np.fill_diagonal(distances, np.inf)
    return np.partition(distances, _NEIGHBOURS - 1, axis=1)[:, :_NEIGHBOURS].mean(axis=1)


def _shared_top(ours: np.ndarray, theirs: np.ndarray) -> float:
    k = math.ceil(_TOP_FRACTION * len(ours))
    tops = [set(np.argsort(-scores, kind="stable")[:k].tolist()) for scores in (ours, theirs)]
    return len(tops[0] & tops[1]) / k
