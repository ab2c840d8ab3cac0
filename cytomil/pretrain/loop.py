"""The training loop: from bags to an encoder bundle, a checkpoint after every epoch."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cytomil.bags.bag_file import open_bag
from cytomil.bags.manifest import fingerprint, read_manifest
from cytomil.bags.synthetic import SOURCE as SYNTHETIC
from cytomil.encoders.architecture import Architecture, Encoder, resolve_stem
from cytomil.encoders.bundle import CARD_NAME, EncoderBundle, load_bundle, pick_device, read_card, save_bundle
from cytomil.encoders.engines.eager import to_unit_range
from cytomil.encoders.transform import CellTransform
from cytomil.errors import DivergedError, SettingsError, require_replaceable
from cytomil.pretrain.cells import TrainingCells, bytes_needed, epoch_batches, load_training_cells, steps_per_epoch
from cytomil.pretrain.checkpoint import Checkpoint, RunIdentity, checkpoint_path, load_checkpoint, save_checkpoint
from cytomil.pretrain.diagnostics import Health, examine
from cytomil.pretrain.losses import chance_level
from cytomil.pretrain.memory import require_memory
from cytomil.pretrain.methods import METHODS, Batch, Method
from cytomil.pretrain.schedule import learning_rate_at
from cytomil.pretrain.views import ViewMaker
from cytomil.progress import Listener, Problem
from cytomil.provenance import code_fingerprint, now, versions
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
        NotFoundError, BagFileError: the bags are missing or damaged.
        ResumeError: with ``resume``, the interrupted run was another one; or its checkpoint is damaged.
        DivergedError: a loss became NaN or infinite.
    """
    require_replaceable(settings.out, CARD_NAME)
    manifest = read_manifest(settings.bags)
    rows = manifest.select("train")
    identity = RunIdentity(
        settings.model_dump(mode="json"), fingerprint(rows), code_fingerprint("bags", "encoders", "pretrain")
    )
    if resume and (done := _finished(settings, identity)):
        return Pretrained(done, (), already_done=True)
    checkpoint = load_checkpoint(settings.out, identity, insist=resume)
    device = pick_device(settings.device)
    transform = CellTransform(settings.image_size, settings.center_crop)
    require_memory(bytes_needed(rows, settings.image_size), rows, settings, listener)
    cells = load_training_cells(manifest, rows, transform, listener)
    _require_batch(cells, settings)
    run = _Run(settings, identity, cells, device, checkpoint)
    if checkpoint:
        listener.note(f"resuming after epoch {checkpoint.epoch} of {settings.epochs}")
    for epoch in range(run.epoch, settings.epochs):
        record = run.train_epoch(epoch, listener)
        if on_epoch:
            on_epoch(record)
    infos = [open_bag(manifest.file_of(row)).info for row in rows]
    sources = sorted({info.source.split("/")[0] for info in infos})
    cuttings = {info.cutting for info in infos}
    # Bags that were cut in different ways, or came as images, do not say how to cut a new slide.
    agreed = cuttings.pop() if len(cuttings) == 1 else None
    data = {
        "fingerprint": identity.data,
        "n_bags": len(rows),
        "n_cells": len(cells),
        "sources": sources,
        "cutting": None if agreed is None else agreed.to_json(),
    }
    facts = run.facts() | {"data": data, "synthetic": sources == [SYNTHETIC]}
    bundle = save_bundle(settings.out, run.encoder, transform, facts)
    checkpoint_path(settings.out, identity).unlink(missing_ok=True)
    return Pretrained(bundle, cells.problems)


def _finished(settings: PretrainSettings, identity: RunIdentity) -> EncoderBundle | None:
    if not (settings.out / CARD_NAME).is_file() or read_card(settings.out).get("fingerprint") != identity.fingerprint:
        return None
    return load_bundle(settings.out)


def _require_batch(cells: TrainingCells, settings: PretrainSettings) -> None:
    n_positive = int(cells.is_positive.sum())
    larger = max(n_positive, len(cells) - n_positive)
    if settings.batch_size // 2 > larger:
        raise SettingsError(
            f"batch_size {settings.batch_size} takes {settings.batch_size // 2} cells from each side; "
            f"the larger has {larger}. Lower --batch-size."
        )


class _Run:
    """One training run: what changes from step to step, and nothing else."""

    def __init__(
        self,
        settings: PretrainSettings,
        identity: RunIdentity,
        cells: TrainingCells,
        device: torch.device,
        checkpoint: Checkpoint | None,
    ) -> None:
        torch.manual_seed(settings.seed)
        torch.backends.cudnn.deterministic = True
        self.settings, self.identity, self.cells, self.device = settings, identity, cells, device
        stem = resolve_stem(settings.stem, settings.image_size)
        self.encoder = Encoder(Architecture(stem=stem, projection_dim=settings.projection_dim))
        mean, std = cells.channel_statistics()
        self.encoder.mean.copy_(mean.view(1, 3, 1, 1))
        self.encoder.std.copy_(std.view(1, 3, 1, 1))
        self.method: Method = METHODS[settings.method](settings)
        self.encoder.to(device).to(memory_format=torch.channels_last)
        if self.method.head:
            self.method.head.to(device)
        self.shared = list(self.encoder.parameters())
        own = list(self.method.head.parameters()) if self.method.head else []
        self.optimizer = torch.optim.SGD(
            self.shared + own,
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        self.make_view = ViewMaker(settings.crop_scale, settings.jitter)
        self.steps = steps_per_epoch(cells.is_positive, settings.batch_size)
        self.epoch = 0
        self.history: list[dict[str, Any]] = []
        self.health: Health | None = None
        if checkpoint:
            self._restore(checkpoint)

    def train_epoch(self, epoch: int, listener: Listener) -> dict[str, Any]:
        """One pass over the cells, then a look at the embeddings and a checkpoint. Returns the epoch's record."""
        # Seeded by epoch, so that a resumed run draws what an unbroken one would have drawn.
        generator = torch.Generator().manual_seed(self.settings.seed * 100_003 + epoch)
        self.encoder.train()
        sums: dict[str, float] = defaultdict(float)
        n_images, started = 0, time.perf_counter()
        batches = epoch_batches(self.cells.is_positive, self.settings.batch_size, generator)
        title = f"epoch {epoch + 1}/{self.settings.epochs}"
        for number, indices in enumerate(listener.track(batches, title, total=self.steps, unit="steps")):
            step = epoch * self.steps + number
            for key, value in self._step(step, indices, generator).items():
                sums[key] += value
            n_images += len(indices)
        seconds = time.perf_counter() - started
        self.health = examine(self.encoder, self.cells.pixels, self.cells.is_positive, self.device)
        record = {"epoch": epoch + 1, **{key: total / self.steps for key, total in sums.items()}, **vars(self.health)}
        self.history.append(record)
        self.epoch = epoch + 1
        save_checkpoint(checkpoint_path(self.settings.out, self.identity), self.identity, self._checkpoint())
        return record | {"images_per_second": n_images / seconds}

    def facts(self) -> dict[str, Any]:
        """What the bundle says of this run."""
        last = self.history[-1]
        margin = last["chance"] - last["loss_nt_xent"] if "loss_nt_xent" in last else None
        assert self.health is not None
        reason = self.health.collapse_reason(margin, last.get("chance"))
        return {
            "method": self.settings.method.value,
            "collapsed": bool(reason),
            "collapse_reason": reason,
            "effective_rank": self.health.effective_rank,
            "nt_xent_margin": margin,
            "settings": self.settings.model_dump(mode="json"),
            "fingerprint": self.identity.fingerprint,
            "history": self.history,
            "versions": versions(),
            "made": now(),
        }

    def _step(self, step: int, indices: Tensor, generator: torch.Generator) -> dict[str, float]:
        settings = self.settings
        rate = learning_rate_at(
            step, settings.epochs * self.steps, settings.warmup_epochs * self.steps, settings.learning_rate
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        pixels = to_unit_range(self.cells.pixels[indices], self.device)
        is_positive = self.cells.is_positive[indices].to(self.device)
        views = tuple(self.make_view(pixels, generator) for _ in range(self.method.n_views))
        losses = self.method.losses(self.encoder, Batch(views, is_positive))
        measured = {f"loss_{name}": float(loss.detach()) for name, loss in losses.items()}
        self._refuse_divergence(step, measured)
        self.optimizer.zero_grad(set_to_none=True)
        if self.method.combine is None:
            torch.stack(list(losses.values())).sum().backward()
        else:
            measured |= self._operate(losses, self.method.combine)
        self.optimizer.step()
        if "loss_nt_xent" in measured:
            n_contrasted = len(indices) if "loss_similarity" not in measured else int(is_positive.sum())
            measured["chance"] = chance_level(n_contrasted)
        return measured | {"learning_rate": rate}

    def _operate(self, losses: dict[str, Tensor], combine: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Give the shared weights the combined gradient; returns the two gradients' norms and their cosine."""
        tasks = list(losses.values())
        gradients = torch.stack(
            [
                torch.cat(
                    [g.reshape(-1) for g in torch.autograd.grad(loss, self.shared, retain_graph=loss is not tasks[-1])]
                )
                for loss in tasks
            ]
        )
        pieces = combine(gradients).split([weight.numel() for weight in self.shared])
        for weight, piece in zip(self.shared, pieces, strict=True):
            weight.grad = piece.view_as(weight)
        negative, positive = torch.linalg.vector_norm(gradients, dim=1).tolist()
        inner = float(gradients[0] @ gradients[1])
        return {
            "gradient_norm_negative": negative,
            "gradient_norm_positive": positive,
            "gradient_cosine": inner / max(negative * positive, 1e-30),
        }

    def _refuse_divergence(self, step: int, losses: dict[str, float]) -> None:
        broken = [name for name, value in losses.items() if not torch.isfinite(torch.tensor(value))]
        if broken:
            kept = checkpoint_path(self.settings.out, self.identity)
            last_good = (
                f"the last good checkpoint, after epoch {self.epoch}, is {kept}"
                if self.epoch
                else "no epoch was finished"
            )
            raise DivergedError(
                f"{', '.join(broken)} became NaN or infinite at step {step + 1} (epoch {step // self.steps + 1}); "
                f"{last_good}. Lower --learning-rate."
            )

    def _checkpoint(self) -> Checkpoint:
        head = self.method.head.state_dict() if self.method.head else None
        return Checkpoint(self.epoch, self.encoder.state_dict(), head, self.optimizer.state_dict(), self.history)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.epoch, self.history = checkpoint.epoch, checkpoint.history
        self.encoder.load_state_dict(checkpoint.model)
        if self.method.head and checkpoint.head:
            self.method.head.load_state_dict(checkpoint.head)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.health = examine(self.encoder, self.cells.pixels, self.cells.is_positive, self.device)
