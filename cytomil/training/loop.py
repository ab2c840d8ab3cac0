"""The training loop: trains an encoder on bags, writes a checkpoint after every epoch, and the bundle at the end."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from cytomil.bags.bag_file import Draw, open_bag
from cytomil.bags.manifest import BagRow, FittedBag, Manifest, fingerprint, patient_key, read_manifest
from cytomil.bags.synthetic_cells import SOURCE as SYNTHETIC
from cytomil.cards import library_versions
from cytomil.config import changed, note_unused, own_config
from cytomil.encoders.bundle import (
    CARD_NAME,
    OWN_FILES,
    EncoderBundle,
    load_bundle,
    pick_device,
    read_card,
    save_bundle,
    stored_engines,
)
from cytomil.encoders.stages import default_layer, layer_is_frozen
from cytomil.encoders.start import Initialisation, resolve_initialisation
from cytomil.encoders.transform import CellTransform
from cytomil.errors import SettingsError, require_replaceable
from cytomil.files import sha256_of_json
from cytomil.progress import Listener, Problem, Work, require_disk_space
from cytomil.training.cells import (
    TrainingCells,
    bytes_needed,
    cell_cache_path,
    count,
    load_training_cells,
    measured_memory,
    open_cell_cache,
    require_disk,
    require_memory,
    write_cell_cache,
)
from cytomil.training.checkpoint import (
    LIBRARIES,
    TRAINING_VERSION,
    Checkpoint,
    RunIdentity,
    checkpoint_path,
    load_checkpoint,
)
from cytomil.training.config import PretrainConfig
from cytomil.training.instance_label_access import read_training_instance_labels
from cytomil.training.methods import Method, load_method, require_consent
from cytomil.training.processes import OneProcess, Processes
from cytomil.training.run import Run

EpochListener = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Pretrained:
    """A finished run. ``already_done``: the bundle already existed, and nothing was trained."""

    bundle: EncoderBundle
    problems: tuple[Problem, ...]
    already_done: bool = False


def pretrain(
    settings: PretrainConfig,
    listener: Listener,
    on_epoch: EpochListener | None = None,
    resume: bool = False,
    processes: Processes | None = None,
) -> Pretrained:
    """Train an encoder on the training bags and write its bundle.

    An interrupted run with the same settings, bags, `TRAINING_VERSION` and libraries continues after its last complete
    epoch. It ends with the same weights as an uninterrupted run.

    Args:
        settings: of the run.
        listener: shows progress and notes.
        on_epoch: receives one record per epoch: losses, chance level, state of the embeddings, gradients, speed. A resumed
            run first reports the records of the earlier epochs, without speed.
        resume: raise an error if the interrupted run had other settings or data, and keep a finished run as it is.
        processes: if there are several (see `cytomil.training.processes.training_processes`), each calls this function with
            the same arguments and reads the same files. Only the first one writes.

    Raises:
        SettingsError: the method or architecture is unknown, or does not support the settings.
        NotFoundError, BagFileError: the bags are missing or damaged.
        NotFoundError, WeightsFileError: the initial weights are missing, damaged or of another architecture.
        ResumeError: with ``resume``, the interrupted run had other settings or data; or its checkpoint is damaged.
        DivergedError: a loss became NaN or infinite.
    """
    report = on_epoch or (lambda record: None)
    method = load_method(settings.method)
    own = own_config("method", settings.method, method.Config, settings.options, PretrainConfig.model_fields)
    settings = settings.model_copy(update={"options": {settings.method: own.model_dump(mode="json")}})
    require_consent(method, settings)
    without_effect = [name for name in changed(settings) if name in method.unused]
    note_unused(without_effect, f"with method '{settings.method}'", listener.note)
    require_replaceable(settings.out, CARD_NAME, OWN_FILES)
    manifest = read_manifest(settings.bags)
    rows = manifest.select("train")
    start = _start(settings, method, listener.note)
    identity = _identity(settings, start, rows, method)
    if resume and (done := _finished(settings, identity)):
        return Pretrained(done, (), already_done=True)
    checkpoint = load_checkpoint(settings.out, identity, must_match=resume)
    processes = processes or OneProcess(pick_device(settings.device))
    transform = CellTransform(settings.image_size, settings.center_crop)
    cells = _cells(settings, manifest, rows, transform, listener, processes)
    if method.trains:
        _require_batch(cells, settings, processes)
    make_method: Callable[..., Method] = partial(method, settings, cells=cells)
    if method.uses_instance_labels:
        make_method = partial(
            make_method, instance_labels=read_training_instance_labels(manifest, rows, cells, draw_of(settings))
        )
    run = Run(settings, identity, cells, processes, checkpoint, make_method, start, listener.note)
    layer, frozen_stages = default_layer(run.encoder), run.encoder.frozen_stages
    if method.trains and layer_is_frozen(start.architecture, settings.image_size, frozen_stages, layer):
        listener.note(
            f"layer {layer}, the default of embed, is not trained, because {frozen_stages} stages are frozen. "
            "Use a later --layer for embed, or lower --frozen-stages."
        )
    if checkpoint:
        _note_resumption(checkpoint, settings.epochs, listener.note)
        for record in checkpoint.history:
            report(record)
    if method.trains:
        with listener.whole(_work(run, cells, settings, processes)) as count:
            for epoch in range(run.epoch, settings.epochs):
                report(run.train_epoch(epoch, listener, count))
    if not method.trains:
        listener.note("measuring the embeddings of up to 1,000 cells")
        report(run.examine_untrained())
    if not processes.is_first:
        processes.barrier()
        return Pretrained(load_bundle(settings.out), ())
    metadata = run.metadata() | _data_metadata(manifest, rows, identity, len(cells), method.trains)
    engines = stored_engines(settings.out)
    bundle = save_bundle(settings.out, run.encoder, transform, metadata)
    if deleted := sorted(set(engines) - set(stored_engines(settings.out))):
        listener.note(
            f"engines compiled from the old weights were deleted: {', '.join(deleted)}. Compile them again with "
            "`cytomil compile`."
        )
    checkpoint_path(settings.out, identity).unlink(missing_ok=True)
    processes.barrier()
    return Pretrained(bundle, cells.problems)


def _note_resumption(checkpoint: Checkpoint, epochs: int, note: Callable[[str], None]) -> None:
    note(f"resuming after epoch {checkpoint.epoch} of {epochs}")
    threads = torch.get_num_threads()
    if checkpoint.threads not in (0, threads):
        note(
            f"so far with {checkpoint.threads} threads, now with {threads}: the weights will differ from those of an "
            f"uninterrupted run. Set OMP_NUM_THREADS={checkpoint.threads} for the same weights."
        )


def _start(settings: PretrainConfig, method: type[Method], note: Callable[[str], None]) -> Initialisation:
    projection_dim = settings.projection_dim if method.trains else 0
    projector = settings.projector if method.standardises else "plain"
    return resolve_initialisation(
        settings.weights, settings.arch, settings.stem, settings.image_size, projection_dim, projector, note
    )


def _identity(
    settings: PretrainConfig, start: Initialisation, rows: tuple[BagRow, ...], method: type[Method]
) -> RunIdentity:
    fields = settings.model_dump(mode="json")
    if start.weights:
        fields["weights"] = start.weights.sha256  # the path of the file does not matter
    return RunIdentity(fields, fingerprint(rows), _made_by(start, method))


def _made_by(start: Initialisation, method: type[Method]) -> dict[str, str]:
    found = {"training version": str(TRAINING_VERSION)} | library_versions(*LIBRARIES, *start.libraries)
    if not method.__module__.startswith("cytomil."):
        found["source of the method"] = sha256_of_json(inspect.getsource(inspect.getmodule(method) or method))[:12]
    return found


def _cells(
    settings: PretrainConfig,
    manifest: Manifest,
    rows: tuple[BagRow, ...],
    transform: CellTransform,
    listener: Listener,
    processes: Processes,
) -> TrainingCells:
    size = settings.image_size
    draw = draw_of(settings)
    needed, n = bytes_needed(rows, size, draw), count(rows, draw)
    what = f"{n:,} cells at {size}×{size} px"
    if n < (n_all := sum(row.n_instances for row in rows)):
        what = f"{n:,} of {n_all:,} cells, at most {settings.cells_per_bag:,} per bag, at {size}×{size} px"
    if settings.cache == "ram":
        require_memory(needed, what, processes.on_this_machine, listener)
        return load_training_cells(manifest, rows, transform, listener, draw)
    path = cell_cache_path(settings.out, fingerprint(rows), transform, draw)
    if processes.is_first and not path.is_file():
        require_disk(needed, what, path, listener)
        write_cell_cache(path, manifest, rows, transform, listener, draw)
    processes.barrier()
    return open_cell_cache(path, manifest, rows)


def draw_of(settings: PretrainConfig) -> Draw:
    """Which cells of a bag are used for training."""
    return Draw(settings.cells_per_bag, settings.seed)


def _work(run: Run, cells: TrainingCells, settings: PretrainConfig, processes: Processes) -> Work:
    """The remaining epochs. Raises `SettingsError` if the disk has too little space for their checkpoints."""
    n_bytes = run.bytes_to_write()
    require_disk_space(n_bytes, "checkpoints and encoder", settings.out, "Free some space")
    return Work(
        (settings.epochs - run.epoch) * run.steps,
        "steps",
        warm_up=1,
        disk=n_bytes + (cells.pixels.nbytes if settings.cache == "disk" else 0),
        memory=partial(measured_memory, processes.on_this_machine),
        without_gpu=not torch.cuda.is_available(),
    )


def _finished(settings: PretrainConfig, identity: RunIdentity) -> EncoderBundle | None:
    if not (settings.out / CARD_NAME).is_file() or read_card(settings.out).fingerprint != identity.fingerprint:
        return None
    return load_bundle(settings.out)


def _data_metadata(
    manifest: Manifest, rows: tuple[BagRow, ...], identity: RunIdentity, n_cells: int, trains: bool
) -> dict[str, Any]:
    infos = [open_bag(manifest.file_of(row)).info for row in rows]
    sources = sorted({info.source.split("/")[0] for info in infos})
    cuttings = {info.cutting for info in infos}
    # If bags were cut in different ways, or consist of single images, the cutting of a new slide is undefined.
    cutting = cuttings.pop() if len(cuttings) == 1 else None
    data = {
        "fingerprint": identity.data,
        "n_bags": len(rows),
        "n_cells": n_cells,
        "sources": sources,
        "cutting": None if cutting is None else cutting.to_json(),
        "fitted_to": [
            FittedBag(sha256=row.sha256, patient=patient_key(row.patient_id)).to_json()
            for row in (rows if trains else ())
        ],
    }
    return {"data": data, "synthetic": sources == [SYNTHETIC]}


def _require_batch(cells: TrainingCells, settings: PretrainConfig, processes: Processes) -> None:
    if settings.batch_size < 2 * processes.count:
        raise SettingsError(
            f"batch_size {settings.batch_size} is too small for {processes.count} processes. Raise --batch-size."
        )
    n_positive = int(cells.is_positive.sum())
    larger = max(n_positive, len(cells) - n_positive)
    if settings.batch_size // 2 > larger:
        raise SettingsError(
            f"batch_size {settings.batch_size} needs {settings.batch_size // 2} cells of each label, but the larger label has "
            f"{larger}. Lower --batch-size."
        )
