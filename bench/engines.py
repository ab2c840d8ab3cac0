"""Encoder bundles with every engine that this machine can compile, for the benches to compare."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bench import child
from cytomil.encoders.architecture import Architecture, Encoder, resolve_stem
from cytomil.encoders.bundle import ENGINES_FOLDER, EncoderBundle, load_bundle, save_bundle, stored_engines
from cytomil.encoders.engines import Engine, open_engine
from cytomil.encoders.engines.eager import to_unit_range
from cytomil.encoders.transform import CellTransform
from cytomil.layer import Layer

CPU = torch.device("cpu")


def settled_bundle(path: Path, image_size: int, pixels: np.ndarray) -> EncoderBundle:
    """An untrained encoder whose batch norms have seen real cells, ``pixels`` uint8 (N, S, S, 3).

    Speed does not depend on the weights, but a compiled form is checked against eager, and without settled batch norms
    all cells would look the same to it.
    """
    torch.manual_seed(0)
    encoder = Encoder(Architecture(stem=resolve_stem("auto", image_size)))
    norms = [module for module in encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    encoder.train()
    with torch.no_grad():
        for block in np.array_split(pixels, max(1, len(pixels) // 32)):
            encoder(to_unit_range(block, CPU))
    for norm in norms:
        norm.momentum = 0.1
    return save_bundle(path, encoder.eval(), CellTransform(image_size, 0.8), {"method": "none"})


def copied_bundle(given: Path, out: Path, compiled: bool = False) -> EncoderBundle:
    """A copy to be compiled in the place of the given one, which stays as it is; with its engines only if ``compiled``."""
    shutil.copytree(given, out, ignore=None if compiled else shutil.ignore_patterns(ENGINES_FOLDER))
    return load_bundle(out)


def compile_engines(bundle: Path, bags: Path, names: Sequence[str]) -> dict[str, str]:
    """`cytomil compile`, layers h and z, for ``names`` but eager and those stored. Returns why, for those not to be had."""
    refused = {}
    for name in names:
        if name == "eager" or name in stored_engines(bundle):
            continue
        library, _, precision = name.partition("-") if name != "torch-compile" else (name, "", "")
        line = ["compile", "--engine", library, "--encoder", str(bundle), "--bags", str(bags), "--layer", "h z"]
        done = child.cytomil(*line, *(["--precision", precision] if precision else []), accepted=(0, 1))
        if done.status:
            # Neither JSON nor a table should say where the bench keeps its files.
            said = " ".join(done.stderr.replace(f"{bundle.parent}/", "").split())
            refused[name] = said.rpartition("error: ")[2] or f"cytomil compile ended with status {done.status}"
    return refused


def open_engines(path: Path, layer: str, names: Sequence[str], refused: dict[str, str]) -> dict[str, Engine]:
    """The engines of ``names`` that open on the CPU as themselves; the others' reasons are added to ``refused``."""
    opened: dict[str, Engine] = {}
    for name in names:
        if name in refused:
            continue
        notes: list[str] = []
        engine = open_engine(load_bundle(path), Layer.parse(layer), name, "cpu", notes.append)
        if engine.name == name:
            opened[name] = engine
        else:
            refused[name] = " ".join(notes) or f"{engine.name} ran in its place"
    return opened


def eager_reference(bundle: EncoderBundle) -> Encoder:
    """The bundle's encoder with channels first in memory, apart from the one that an engine may have rearranged."""
    return copy.deepcopy(bundle.encoder).to(memory_format=torch.contiguous_format).eval()
