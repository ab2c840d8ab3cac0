"""Choose the engine: the requested one or the fastest, if it can run here, otherwise eager with a note."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from cytomil.encoders.bundle import ENGINES_FOLDER, EncoderBundle, pick_device, stored_engines
from cytomil.encoders.engines.engine import EagerEngine, Engine, start_engine
from cytomil.encoders.engines.record import (
    EngineRecord,
    agreement,
    backend_of,
    form_of,
    machine,
    read_record,
    refusal,
    require_valid,
)
from cytomil.encoders.engines.registry import AUTO, EAGER
from cytomil.errors import EngineError
from cytomil.layer import Layer

_NOISE_CELLS = 16


def open_engine(bundle: EncoderBundle, layer: Layer, name: str, device: str, note: Callable[[str], None]) -> Engine:
    """The engine that embeds ``layer`` of ``bundle`` on ``device``.

    Args:
        bundle: the encoder bundle.
        layer: the layer to compute.
        name: ``auto`` (the fastest valid stored engine that is faster than eager), ``eager``, the name of a stored engine
            such as ``openvino-int8``, or a backend (``openvino``: its fastest valid engine). If it cannot run, eager runs
            instead.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        note: receives one line with the reason and the remedy if another engine runs.

    Raises:
        EncoderBundleError: there is no such device.
    """
    chosen = pick_device(device)
    faults: dict[str, str] = {}
    if name != EAGER:
        for record, folder in _valid(bundle, layer, name, chosen, faults):
            if name == AUTO and record.gain <= 1:
                continue
            try:
                engine = start_engine(backend_of(record), form_of(record, folder, bundle, chosen), layer, record.key)
                if record.machine != machine(chosen):
                    _require_agreement(engine, record, bundle, layer)
            except EngineError as error:
                faults[record.name] = str(error)
                continue
            _note_choice(bundle.path, name, engine.name, faults, note)
            return engine
    eager = EagerEngine(bundle.encoder, layer, chosen)
    _note_choice(bundle.path, name, eager.name, faults, note)
    return eager


def open_same_engine(bundle: EncoderBundle, layer: Layer, name: str, key: str, device: str) -> Engine:
    """The engine that another process runs, by its ``name`` and ``key``. Raises `EngineError` if it cannot run here."""
    notes: list[str] = []
    engine = open_engine(bundle, layer, name, device, notes.append)
    if engine.key != key:
        why = f" ({notes[0]})" if notes else ""
        raise EngineError(
            f"engine {name} of {bundle.path} is not the same on all machines{why}. Compile it again or use --engine eager."
        )
    return engine


def _valid(
    bundle: EncoderBundle, layer: Layer, name: str, device: torch.device, faults: dict[str, str]
) -> list[tuple[EngineRecord, Path]]:
    """The stored engines of that name that can run here, fastest first. ``faults`` gets the others with the reason."""
    found = []
    for stored in stored_engines(bundle.path):
        # No precision has a hyphen, but a backend's name may.
        if name not in (AUTO, stored, stored.rpartition("-")[0]):
            continue
        folder = bundle.path / ENGINES_FOLDER / stored
        try:
            record = read_record(folder)
            if name == AUTO and record.device != device.type:
                continue
            if record.name != stored:
                raise EngineError(f"its {folder.name} folder holds {record.name}")
            require_valid(record, folder, bundle, device)
            if str(layer) not in record.layers:
                raise EngineError(f"does not compute layer {layer}")
            found.append((record, folder))
        except EngineError as error:
            faults[stored] = str(error)
    return sorted(found, key=lambda one: one[0].gain, reverse=True)


def _require_agreement(engine: Engine, record: EngineRecord, bundle: EncoderBundle, layer: Layer) -> None:
    """Raise `EngineError` if an engine from another machine does not match eager's embeddings of noise here."""
    size = bundle.transform.image_size
    noise = np.random.default_rng(0).integers(0, 256, (_NOISE_CELLS, size, size, 3), np.uint8)
    eager = EagerEngine(bundle.encoder, layer, torch.device("cpu"))
    if why := refusal(agreement(eager.embed(noise), engine.embed(noise)), record.precision):
        raise EngineError(f"compiled on another machine, and disagrees with eager here: {why}")


def _note_choice(path: Path, requested: str, running: str, faults: dict[str, str], note: Callable[[str], None]) -> None:
    remedy = f"`cytomil compile --encoder {path}`"
    if faults:
        why = "; ".join(f"{name} ({reason})" for name, reason in faults.items())
        note(f"compiled engines not used: {why}. Running {running}. Compile them again with {remedy}.")
    elif requested not in (AUTO, EAGER) and running == EAGER:
        note(f"no engine {requested} is stored in {path / ENGINES_FOLDER}. Running eager. Compile one with {remedy}.")
