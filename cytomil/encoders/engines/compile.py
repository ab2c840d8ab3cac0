"""compile: build an engine, compare it with eager on real cells, and keep it in the bundle if it agrees."""

from __future__ import annotations

import copy
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np

from cytomil.bags.manifest import open_listed, read_manifest
from cytomil.cards import code_fingerprint, now
from cytomil.encoders.bundle import (
    ENGINES_FOLDER,
    WEIGHTS_NAME,
    EncoderBundle,
    load_bundle,
    pick_device,
    stored_engines,
)
from cytomil.encoders.engines.engine import (
    Backend,
    CompiledForm,
    EagerEngine,
    Engine,
    batch_of,
    one_line_errors,
    start_engine,
)
from cytomil.encoders.engines.record import MIN_CELLS, EngineRecord, agreement, machine, refusal
from cytomil.encoders.engines.registry import CompileConfig, load_backend
from cytomil.encoders.stages import layer_of
from cytomil.encoders.transform import CellTransform, decode_cells
from cytomil.errors import BagFileError, EngineError, EngineRefusedError
from cytomil.files import replacing_folder, sha256_of_file
from cytomil.full_disk import is_full, require_free
from cytomil.progress import Listener


def training_cells(bags: Path, transform: CellTransform, n: int, minimum: int, seed: int) -> np.ndarray:
    """Up to ``n`` cells drawn at random from all training bags, uint8 (m, S, S, 3), without unreadable ones.

    Raises:
        EngineError: there are fewer than ``minimum`` readable cells.
        NotFoundError, BagFileError: the bags are missing or damaged.
    """
    manifest = read_manifest(bags)
    opened = [open_listed(manifest, row) for row in manifest.rows if row.split == "train"]
    cells = [(bag, i) for bag in opened for i in range(len(bag))]
    drawn = sorted(np.random.default_rng(seed).permutation(len(cells))[:n])
    chosen = [cells[i] for i in drawn]
    encoded = [bag.images(i, i + 1)[0] for bag, i in chosen]
    pixels, _, _ = decode_cells(encoded, [bag.instance_ids[i] for bag, i in chosen], transform)
    if len(pixels) < minimum:
        raise EngineError(
            f"{bags} has {len(pixels)} readable cells in training bags; compiling needs at least {minimum}. "
            "Name bags with more cells with --bags."
        )
    # Shuffled, because the cells are in the order of the bags and callers split them into two similar halves.
    return pixels[np.random.default_rng(seed).permutation(len(pixels))]


_REPEATS = 5


def images_per_second(engine: Engine, eager: Engine, pixels: np.ndarray) -> tuple[float, float]:
    """Median of five alternating runs of both engines on ``pixels``, uint8 (N, S, S, 3), after a warm-up."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(_REPEATS + 1):
        for runner, durations in zip((engine, eager), seconds, strict=True):
            start = time.perf_counter()
            runner.embed(pixels)
            durations.append(time.perf_counter() - start)
    engine_speed, eager_speed = (len(pixels) / median(durations[1:]) for durations in seconds)
    return engine_speed, eager_speed


_TIMED_BATCHES = 8


def compile_engine(settings: CompileConfig, listener: Listener) -> EngineRecord:
    """Compile an engine, compare it with eager, measure its speed and store it. Returns its record.

    If it fails, nothing is stored, and an engine stored before is kept.

    Raises:
        EngineError: the engine cannot be compiled here, or is refused.
        SettingsError: the backend does not take its own settings.
        NotFoundError: there is no encoder or no bags.
        EncoderBundleError, BagFileError: the encoder or a bag is damaged.
    """
    backend, precision_setting = load_backend(settings.engine, settings.options), settings.precision.value
    if precision_setting not in ("auto", *backend.precisions):
        offered = " or ".join(backend.precisions)
        raise EngineError(f"{backend.name} has no precision {precision_setting}. Use --precision {offered}.")
    if backend.caveat:
        listener.note(backend.caveat)
    tried = backend.auto_precisions() if precision_setting == "auto" else (precision_setting,)
    for precision, following in pairwise(tried):
        try:
            return _compile(settings, backend, precision, listener)
        except EngineRefusedError as error:
            listener.note(f"{error} {following} is compiled instead.")
    return _compile(settings, backend, tried[-1], listener)


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
        why = str(error)
    except OSError as error:
        if not is_full(error):
            raise
        why = f"{error.filename}: {error.strerror}."
    listener.note(f"No engine was compiled: {why} embed and rank use the eager engine, which is several times slower.")
    return None


def _compile(settings: CompileConfig, backend: Backend, precision: str, listener: Listener) -> EngineRecord:
    bundle = load_bundle(settings.encoder)
    layers = tuple(dict.fromkeys(layer_of(word, bundle.encoder).embedded for word in settings.layer.split()))
    device = backend.device(settings.device)
    if why := backend.why_not_build(precision):
        raise EngineError(f"{why}.")
    calibration, held_back = _draw_cells(settings, bundle, backend.calibration_cells(precision))
    name = backend.stored_name(backend.name, precision)
    with replacing_folder(settings.encoder / ENGINES_FOLDER / name) as folder:
        # Libraries that write an engine do not report a full disk. An engine takes as much space as the weights.
        require_free(folder, (bundle.path / WEIGHTS_NAME).stat().st_size)
        listener.note(f"compiling {name}; this can take a minute or more")
        form = CompiledForm(name, bundle.encoder, layers, bundle.transform.image_size, precision, device, folder)
        with one_line_errors(f"{name} cannot be compiled"):
            metadata = backend.build(form, calibration)
        files = {path.name: sha256_of_file(path) for path in sorted(folder.iterdir())}
        found, engine_speed, eager_speed = _measure(backend, form, held_back, listener)
        record = EngineRecord(
            name=name,
            engine=backend.name,
            precision=precision,
            weights_sha256=bundle.sha256,
            image_size=form.image_size,
            device=device.type,
            machine=machine(device),
            versions=backend.versions(),
            files=files,
            layers=[str(layer) for layer in layers],
            agreement=found,
            images_per_second=engine_speed,
            eager_images_per_second=eager_speed,
            facts=metadata | {"made": now(), "code": code_fingerprint("encoders")[:12], "seed": settings.seed},
        )
        record.write(folder)
    return record


def _draw_cells(settings: CompileConfig, bundle: EncoderBundle, n_calibration: int) -> tuple[np.ndarray, np.ndarray]:
    """Training cells for calibration, and other ones for the comparison with eager; both uint8 (N, S, S, 3)."""
    minimum = 2 * MIN_CELLS if n_calibration else MIN_CELLS
    cells = training_cells(settings.bags, bundle.transform, settings.cells + n_calibration, minimum, settings.seed)
    # No cell is in both sets. If the bags hold few cells, each set gets half of them.
    split = min(n_calibration, len(cells) // 2)
    return cells[:split], cells[split:]


def _measure(
    backend: Backend, form: CompiledForm, cells: np.ndarray, listener: Listener
) -> tuple[dict[str, dict[str, float]], float, float]:
    """Agreement by layer, and images per second of the engine and of eager. Raises `EngineError` if it is refused."""
    found: dict[str, dict[str, float]] = {}
    for layer in listener.track(form.layers, f"comparing {form.name} with eager", unit="layers"):
        engine = start_engine(backend, form, layer, form.name)
        eager = EagerEngine(copy.deepcopy(form.encoder), layer, form.device)
        figures = found[str(layer)] = agreement(eager.embed(cells), engine.embed(cells))
        if why := refusal(figures, form.precision):
            raise EngineRefusedError(
                f"{form.name} disagrees with eager on {len(cells)} cells (layer {layer}: {why}); nothing is stored. "
                "Use another --precision."
            )
    # Several batches, because some engines process several batches at once and would otherwise be partly idle.
    timed = np.resize(cells, (_TIMED_BATCHES * batch_of(form.image_size), *cells.shape[1:]))
    engine_speed, eager_speed = images_per_second(engine, eager, timed)
    if backend.must_be_faster and engine_speed <= eager_speed:
        raise EngineError(
            f"{form.name} is no faster here than eager ({engine_speed:.0f} images/s against {eager_speed:.0f}); nothing is "
            "stored."
        )
    return found, engine_speed, eager_speed
