"""The training loop: from bags to an encoder bundle, a checkpoint after every epoch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from cytomil.bags.bag_file import open_bag
from cytomil.bags.manifest import BagRow, Manifest, fingerprint, read_manifest
from cytomil.bags.synthetic import SOURCE as SYNTHETIC
from cytomil.encoders.bundle import CARD_NAME, EncoderBundle, load_bundle, pick_device, read_card, save_bundle
from cytomil.encoders.transform import CellTransform
from cytomil.errors import SettingsError, require_replaceable
from cytomil.files import sha256_of_json
from cytomil.pretrain.cells import TrainingCells, bytes_needed, load_training_cells
from cytomil.pretrain.checkpoint import RunIdentity, checkpoint_path, load_checkpoint
from cytomil.pretrain.instance_label_door import read_training_instance_labels
from cytomil.pretrain.memory import require_memory
from cytomil.pretrain.methods import Method, load_method, require_consent
from cytomil.pretrain.run import Run
from cytomil.progress import Listener, Problem
from cytomil.provenance import code_fingerprint
from cytomil.settings import PretrainSettings

EpochListener = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Pretrained:
    """A finished run. ``already_done`` tells that the bundle was there before."""

    bundle: EncoderBundle
    problems: tuple[Problem, ...]
    already_done: bool = False


def pretrain(
    settings: PretrainSettings, listener: Listener, on_epoch: EpochListener | None = None, resume: bool = False
) -> Pretrained:
    """Train an encoder on the training bags and write its bundle.

    An interrupted run of the same settings, bags and code is taken up after its last whole epoch, and ends with the
    weights an unbroken run would have had. With ``resume``, an interrupted run that was another one is an error, and a
    finished one is left as it is.
    ``on_epoch`` receives one record an epoch: losses, the chance level, the state of the embeddings, gradients, speed.

    Raises:
        SettingsError: there is no such method, or it does not do what the settings ask of it.
        NotFoundError, BagFileError: the bags are missing or damaged.
        ResumeError: with ``resume``, the interrupted run was another one; or its checkpoint is damaged.
        DivergedError: a loss became NaN or infinite.
    """
    method = load_method(settings.method)
    require_consent(method, settings)
    require_replaceable(settings.out, CARD_NAME)
    manifest = read_manifest(settings.bags)
    rows = manifest.select("train")
    identity = RunIdentity(settings.model_dump(mode="json"), fingerprint(rows), _code_of(method))
    if resume and (done := _finished(settings, identity)):
        return Pretrained(done, (), already_done=True)
    checkpoint = load_checkpoint(settings.out, identity, insist=resume)
    device = pick_device(settings.device)
    transform = CellTransform(settings.image_size, settings.center_crop)
    require_memory(bytes_needed(rows, settings.image_size), rows, settings, listener)
    cells = load_training_cells(manifest, rows, transform, listener)
    _require_batch(cells, settings)
    make_method: Callable[..., Method] = partial(method, settings, cells=cells)
    if method.uses_instance_labels:
        make_method = partial(make_method, instance_labels=read_training_instance_labels(manifest, rows, cells))
    run = Run(settings, identity, cells, device, checkpoint, make_method)
    if checkpoint:
        listener.note(f"resuming after epoch {checkpoint.epoch} of {settings.epochs}")
    for epoch in range(run.epoch, settings.epochs):
        record = run.train_epoch(epoch, listener)
        if on_epoch:
            on_epoch(record)
    facts = run.facts() | _data_facts(manifest, rows, identity, len(cells))
    bundle = save_bundle(settings.out, run.encoder, transform, facts)
    checkpoint_path(settings.out, identity).unlink(missing_ok=True)
    return Pretrained(bundle, cells.problems)


def _code_of(method: type[Method]) -> str:
    """What shapes the weights: cytomil's own code, and another package's where it brings the method."""
    own = code_fingerprint("bags", "encoders", "pretrain")
    if method.__module__.startswith("cytomil."):
        return own
    return sha256_of_json([own, inspect.getsource(inspect.getmodule(method) or method)])


def _finished(settings: PretrainSettings, identity: RunIdentity) -> EncoderBundle | None:
    if not (settings.out / CARD_NAME).is_file() or read_card(settings.out).get("fingerprint") != identity.fingerprint:
        return None
    return load_bundle(settings.out)


def _data_facts(manifest: Manifest, rows: tuple[BagRow, ...], identity: RunIdentity, n_cells: int) -> dict[str, Any]:
    infos = [open_bag(manifest.file_of(row)).info for row in rows]
    sources = sorted({info.source.split("/")[0] for info in infos})
    cuttings = {info.cutting for info in infos}
    # Bags that were cut in different ways, or came as images, do not say how to cut a new slide.
    agreed = cuttings.pop() if len(cuttings) == 1 else None
    data = {
        "fingerprint": identity.data,
        "n_bags": len(rows),
        "n_cells": n_cells,
        "sources": sources,
        "cutting": None if agreed is None else agreed.to_json(),
    }
    return {"data": data, "synthetic": sources == [SYNTHETIC]}


def _require_batch(cells: TrainingCells, settings: PretrainSettings) -> None:
    n_positive = int(cells.is_positive.sum())
    larger = max(n_positive, len(cells) - n_positive)
    if settings.batch_size // 2 > larger:
        raise SettingsError(
            f"batch_size {settings.batch_size} takes {settings.batch_size // 2} cells from each side; "
            f"the larger has {larger}. Lower --batch-size."
        )
