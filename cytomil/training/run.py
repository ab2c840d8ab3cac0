"""One training run: its epochs, their record, its state in a checkpoint, and whether the encoder collapsed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cytomil.cards import now, versions
from cytomil.encoders.architecture import Encoder
from cytomil.encoders.engines.engine import to_unit_range
from cytomil.encoders.start import Initialisation
from cytomil.errors import DivergedError
from cytomil.precision import pick_precision
from cytomil.progress import Count, Listener, Silent
from cytomil.training.cells import TrainingCells, keep_freed_memory
from cytomil.training.checkpoint import Checkpoint, RunIdentity, checkpoint_path, save_checkpoint
from cytomil.training.config import PretrainConfig
from cytomil.training.methods import Batch, Method
from cytomil.training.processes import Processes
from cytomil.training.step import Step
from cytomil.training.training_encoder import TrainingEncoder, embed_cells
from cytomil.training.views import ViewMaker

MIN_SPREAD = 0.1
MIN_RANK = 2.0
MIN_VARIATION = 1e-3
MIN_MARGIN_FRACTION = 0.02


def effective_rank(embeddings: Tensor) -> float:
    """Exp of the entropy of the centred embeddings' normalised singular values (Roy & Vetterli, 2007; RankMe).

    Args:
        embeddings: shape (N, D).

    Returns:
        Between 1 (a line, or a single point) and min(N − 1, D).
    """
    centred = embeddings.double() - embeddings.double().mean(dim=0)
    values = torch.linalg.svdvals(centred)
    total = values.sum()
    if total <= 1e-12 * max(1.0, float(embeddings.abs().max())) * embeddings.numel():
        return 1.0
    fraction = values / total
    return float(torch.exp(-torch.special.xlogy(fraction, fraction).sum()))


def spread(embeddings: Tensor) -> float:
    """Mean standard deviation per dimension of the unit-length embeddings, times √D, shape (N, D) → 0 to 1.

    1 means spread over the whole sphere, 0 a single point.
    """
    unit = F.normalize(embeddings.double(), dim=1)
    return float(unit.std(dim=0).mean() * math.sqrt(embeddings.shape[1]))


def mean_cosine(embeddings: Tensor) -> float:
    """Mean cosine over ordered pairs i ≠ j, shape (N ≥ 2, D) → −1 to 1."""
    unit = F.normalize(embeddings.double(), dim=1)
    n = len(unit)
    return float((unit.sum(dim=0).square().sum() - unit.square().sum()) / (n * (n - 1)))


def variation(embeddings: Tensor) -> float:
    """Root mean square about the mean as a fraction of the root mean square, shape (N, D) → 0 to 1; 0 is a point."""
    values = embeddings.double()
    length = values.square().sum(dim=1).mean().sqrt()
    about_mean = (values - values.mean(dim=0)).square().sum(dim=1).mean().sqrt()
    return float(about_mean / length.clamp(min=1e-30))


@dataclass(frozen=True)
class Health:
    """Measures of the embeddings of a fixed sample of training cells, in evaluation mode.

    ``spread`` and ``negatives_mean_cosine`` use directions of z from the method's origin.
    """

    effective_rank: float
    effective_rank_z: float
    spread: float
    negatives_mean_cosine: float
    variation: float

    def collapse_reason(self, margin: float | None, chance: float | None, may_be_line: bool = False) -> str:
        """Why these embeddings count as collapsed; empty if they are not collapsed.

        Args:
            margin: nats by which the contrastive loss is below ``chance``; None if no loss has a chance level.
            chance: the contrastive loss of an encoder that distinguishes nothing; None if there is none.
            may_be_line: embeddings on a line are not a collapse. Two perfectly separated classes are two points.
        """
        if self.spread < MIN_SPREAD:
            return f"all cells have nearly the same projection (spread {self.spread:.3f}, below {MIN_SPREAD})"
        if self.variation < MIN_VARIATION:
            return f"z varies by {self.variation:.1e} of its length, less than half precision can represent"
        if not may_be_line and min(self.effective_rank, self.effective_rank_z) < MIN_RANK:
            rank = min(self.effective_rank, self.effective_rank_z)
            return f"the embeddings lie on a line (effective rank {rank:.2f}, below {MIN_RANK:.0f})"
        if margin is not None and chance is not None and margin < MIN_MARGIN_FRACTION * chance:
            return f"the contrastive task is at chance ({margin:.3f} nats below {chance:.3f})"
        return ""


def examine(
    encoder: Encoder, pixels: Tensor, is_positive: Tensor, origin: Tensor | None = None, max_per_side: int = 512
) -> Health:
    """Embed up to ``max_per_side`` evenly spaced cells of each side, without views, and measure the embeddings."""
    sides = [torch.nonzero(is_positive == side).flatten() for side in (False, True)]
    sides = [side[torch.linspace(0, len(side) - 1, min(max_per_side, len(side))).long()] for side in sides]
    h, z = embed_cells(encoder, pixels[torch.cat(sides)])
    centred = z if origin is None else z - origin.cpu()
    negatives_cosine = mean_cosine(centred[: len(sides[0])])
    return Health(effective_rank(h), effective_rank(z), spread(centred), negatives_cosine, variation(z))


_FROM_RANDOM, _FROM_WEIGHTS = 0.06, 0.01


def default_learning_rate(from_weights: bool) -> float:
    """The default peak learning rate, which is lower if training starts from weights."""
    return _FROM_WEIGHTS if from_weights else _FROM_RANDOM


def learning_rate_at(step: int, n_steps: int, warmup_steps: float, peak: float) -> float:
    """Linear warm-up to ``peak``, then half a cosine to 0 at ``n_steps`` (SGDR without restarts, arXiv 1608.03983)."""
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1.0, n_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


# Checking whether the losses are finite waits for the device.
_STEPS_BETWEEN_CHECKS = 50


class Run:
    """A training run and everything in it that changes from epoch to epoch.

    Args:
        settings: the settings of `pretrain`.
        identity: the identity that names the run's checkpoint.
        cells: the training cells.
        processes: the processes that train together.
        checkpoint: the state of an interrupted run of the same identity, which is then continued.
        make_method: makes the method for the encoder.
        start: the initial encoder.
        note: receives one line if the network cannot be compiled.
    """

    def __init__(
        self,
        settings: PretrainConfig,
        identity: RunIdentity,
        cells: TrainingCells,
        processes: Processes,
        checkpoint: Checkpoint | None,
        make_method: Callable[[Encoder], Method],
        start: Initialisation,
        note: Callable[[str], None] | None = None,
    ) -> None:
        keep_freed_memory()
        torch.manual_seed(settings.seed)
        torch.backends.cudnn.deterministic = True
        self.settings, self.identity, self.cells = settings, identity, cells
        self.processes, self.device = processes, processes.device
        self.precision = pick_precision(settings.precision, self.device)
        self.start = start
        self.peak = settings.learning_rate or default_learning_rate(bool(start.weights))
        self.encoder = TrainingEncoder(
            start.architecture, self.precision, processes, bool(start.weights), settings.frozen_stages
        )
        self.encoder.normalise_by(*cells.channel_statistics())
        if start.weights:
            start.weights.load_into(self.encoder)
        self.method = make_method(self.encoder)
        for module in (self.encoder, self.method):
            module.to(self.device).to(memory_format=torch.channels_last)
        if settings.compile:
            # Only after the method was made, because it may copy the encoder.
            self.encoder.use_compiler(note or Silent().note)
        self.step = Step(self.encoder, self.method, settings, processes, self.precision)
        self.make_view = ViewMaker(settings.crop_scale, settings.jitter, self.method.rotates)
        self.steps = len(self.method.batches(torch.Generator()))
        self.epoch = 0
        self.history: list[dict[str, Any]] = []
        self.health: Health | None = None
        if checkpoint:
            self._restore(checkpoint)
        self.step.broadcast_weights()

    def bytes_to_write(self) -> int:
        """The most disk space that the run takes, in bytes: two checkpoints, one replacing the other, and the bundle."""
        return 2 * _bytes_of(vars(self._checkpoint())) + _bytes_of(self.encoder.state_dict())

    def train_epoch(self, epoch: int, listener: Listener, count: Count) -> dict[str, Any]:
        """Pass over the cells once, measure the embeddings and save a checkpoint. Returns the epoch's record.

        Raises:
            DivergedError: a loss or a weight became NaN or infinite.
        """
        # Seeded per epoch: a resumed run must draw the same numbers as an uninterrupted one.
        generator = torch.Generator().manual_seed(self.settings.seed * 100_003 + epoch)
        self.method.before_epoch(epoch, self.encoder)
        self.encoder.train()
        sums: dict[str, Tensor | float] = {}
        unchecked: list[dict[str, Tensor | float]] = []
        n_images, started = 0, time.perf_counter()
        batches = self.method.batches(generator)
        title = f"epoch {epoch + 1}/{self.settings.epochs}"
        for number, indices in enumerate(listener.track(batches, title, total=self.steps, unit="steps")):
            step = epoch * self.steps + number
            measured = self.step(self.batch(indices, generator), self._learning_rate(step))
            self.method.after_step(self.encoder, (step + 1) / (self.settings.epochs * self.steps))
            for key, value in measured.items():
                sums[key] = sums.get(key, 0.0) + value
            unchecked.append(measured)
            if len(unchecked) == _STEPS_BETWEEN_CHECKS or number + 1 == self.steps:
                self._refuse_divergence(step + 1 - len(unchecked), unchecked)
                unchecked = []
            n_images += len(indices)
            count.step(1)
        if not self.step.weights_are_finite():
            raise self._diverged("a weight", (epoch + 1) * self.steps - 1)
        seconds = time.perf_counter() - started
        record = {"epoch": epoch + 1, **_epoch_means(sums, self.steps)}
        self.epoch = epoch + 1
        if self.processes.is_first:
            self.health = self._examine()
            record |= vars(self.health)
            self.history.append(record)
            save_checkpoint(checkpoint_path(self.settings.out, self.identity), self.identity, self._checkpoint())
        return record | {"images_per_second": n_images / seconds}

    def examine_untrained(self) -> dict[str, Any]:
        """Measure the embeddings of the initial encoder, instead of an epoch. Returns the record, of epoch 0."""
        self.method.before_epoch(0, self.encoder)
        self.health = self._examine()
        self.history = [{"epoch": 0, **vars(self.health)}]
        return self.history[0]

    def metadata(self) -> dict[str, Any]:
        """The bundle's record of this run. Only the first process can make it."""
        last = self.history[-1]
        margin = last["chance"] - last[f"loss_{self.method.contrast}"] if "chance" in last else None
        assert self.health is not None
        reason = self.health.collapse_reason(margin, last.get("chance"), self.method.classes)
        return {
            "method": self.settings.method,
            "start_weights": self.start.weights.metadata() if self.start.weights else None,
            "frozen_stages": self.encoder.frozen_stages if self.method.trains else None,
            "peak_learning_rate": self.peak if self.method.trains else None,
            "caveats": list(self.start.weights.caveats) if self.start.weights else [],
            "uses_instance_labels": self.method.uses_instance_labels,
            "collapsed": bool(reason),
            "collapse_reason": reason,
            "precision": str(self.precision).removeprefix("torch."),
            "processes": self.processes.count,
            "effective_rank": self.health.effective_rank,
            "nt_xent_margin": margin,
            "settings": self.settings.model_dump(mode="json"),
            "fingerprint": self.identity.fingerprint,
            "history": self.history,
            "versions": versions(*self.start.libraries),
            "made": now(),
        }

    def batch(self, indices: Tensor, generator: torch.Generator) -> Batch:
        """Views of these cells, drawn from ``generator``. Every process draws the same whole batch."""
        pixels = to_unit_range(self.cells.pixels[indices], self.device)
        views = tuple(self.make_view(pixels, generator) for _ in range(self.method.n_views))
        return Batch(views, self.cells.is_positive[indices].to(self.device), indices)

    def _learning_rate(self, step: int) -> float:
        settings = self.settings
        return learning_rate_at(step, settings.epochs * self.steps, settings.warmup_epochs * self.steps, self.peak)

    def _refuse_divergence(self, first_step: int, measured: list[dict[str, Tensor | float]]) -> None:
        names = [name for name in measured[0] if name.startswith("loss_")]
        losses = torch.stack([torch.stack([torch.as_tensor(one[name]) for name in names]) for one in measured])
        for number, finite in enumerate(torch.isfinite(losses).tolist()):
            if broken := [name for name, is_finite in zip(names, finite, strict=True) if not is_finite]:
                raise self._diverged(", ".join(broken), first_step + number)
        if self.step.loss_scale.is_exhausted():
            raise self._diverged("a gradient", first_step + len(measured) - 1)

    def _diverged(self, what: str, step: int) -> DivergedError:
        kept = checkpoint_path(self.settings.out, self.identity)
        checkpoint = (
            f"the last good checkpoint, after epoch {self.epoch}, is {kept}" if self.epoch else "no epoch was completed"
        )
        return DivergedError(
            f"{what} became NaN or infinite at step {step + 1} (epoch {step // self.steps + 1}); "
            f"{checkpoint}. Lower --learning-rate."
        )

    def _examine(self) -> Health:
        return examine(self.encoder, self.cells.pixels, self.cells.is_positive, self.method.origin())

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            self.epoch,
            self.encoder.state_dict(),
            self.method.state_dict(),
            self.step.optimizer.state_dict(),
            self.step.loss_scale.state_dict(),
            self.history,
            torch.get_num_threads() if self.device.type == "cpu" else 0,
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.epoch, self.history = checkpoint.epoch, checkpoint.history
        self.encoder.load_state_dict(checkpoint.model)
        self.method.load_state_dict(checkpoint.method)
        self.step.optimizer.load_state_dict(checkpoint.optimizer)
        self.step.loss_scale.load_state_dict(checkpoint.loss_scale)
        self.health = self._examine()


def _bytes_of(state: Any) -> int:
    """Approximate size of this state in a file, in bytes. Tensors that share memory are written once."""
    storages: dict[int, int] = {}

    def visit(part: Any) -> None:
        if isinstance(part, Tensor):
            storages[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
        elif isinstance(part, dict):
            for value in part.values():
                visit(value)
        elif isinstance(part, list):
            for value in part:
                visit(value)

    visit(state)
    return sum(storages.values())


def _epoch_means(sums: dict[str, Tensor | float], steps: int) -> dict[str, float | int]:
    """Means of the steps' measurements, and the number of skipped steps. Gradients are averaged over steps taken."""
    skipped = int(sums.get("skipped_steps", 0))
    taken = max(1, steps - skipped)
    record: dict[str, float | int] = {
        key: float(total) / (taken if key.startswith("gradient_") else steps) for key, total in sums.items()
    }
    return record | {"skipped_steps": skipped} if "skipped_steps" in sums else record
