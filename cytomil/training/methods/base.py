"""The interface of pretraining methods, how one is loaded by its name, and the cells of each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cytomil.config import Config, own_config
from cytomil.encoders.architecture import Encoder
from cytomil.errors import SettingsError
from cytomil.registry import METHODS
from cytomil.training.cells import TrainingCells
from cytomil.training.config import PretrainConfig


def balanced_batches(
    pools: Sequence[Tensor], batch_size: int, generator: torch.Generator, length: int | None = None
) -> list[Tensor]:
    """Shuffle the indices of one epoch into steps. Every pool contributes equally to each step.

    Every cell of the largest pool is used exactly once. Smaller pools are reshuffled and repeated until they have
    contributed as many cells. The sizes of two steps differ by at most one cell per pool.

    Args:
        pools: index tensors, none of them empty.
        batch_size: target number of cells per step.
        generator: source of the shuffling.
        length: cells taken from each pool; None: the size of the largest pool.

    Returns:
        One tensor per step. The first pool's cells come first in each.
    """
    longest = length or max(map(len, pools))
    n_steps = max(1, round(longest * len(pools) / batch_size))
    parts_by_pool = [_shuffled(pool, longest, generator).tensor_split(n_steps) for pool in pools]
    return [torch.cat(parts) for parts in zip(*parts_by_pool, strict=True)]


def _shuffled(pool: Tensor, n: int, generator: torch.Generator) -> Tensor:
    rounds = -(-n // len(pool))
    return torch.cat([pool[torch.randperm(len(pool), generator=generator)] for _ in range(rounds)])[:n]


@dataclass(frozen=True)
class Batch:
    """The cells of one step.

    Args:
        views: ``n_views`` tensors (B, 3, S, S).
        is_positive: (B,), the label of each cell's slide.
        indices: (B,), on the CPU, each cell's index among the training cells.
    """

    views: tuple[Tensor, ...]
    is_positive: Tensor
    indices: Tensor


class Method(nn.Module):
    """A pretraining method, made for one run. A subclass must define `losses`, and may override the rest.

    Parameters of the method that require a gradient are trained with the encoder and discarded at the end. Checkpoints
    hold all parameters and buffers. Anything else that changes between steps would be lost when a run is interrupted.
    """

    Config: ClassVar[type[Config]] = Config
    """The method's own settings: a subclass of `cytomil.config.Config`. ``self.own`` is an instance of it."""
    n_views: ClassVar[int] = 2
    """Number of views of each cell that `losses` takes."""
    rotates: ClassVar[bool] = True
    """Whether views rotate the cells by multiples of 90°."""
    contrast: ClassVar[str] = ""
    """Name of the loss that `chance` is about; empty if no loss has a chance level."""
    classes: ClassVar[bool] = False
    """Whether the optimum of the objective is one point per class. Embeddings on a line are then not a collapse."""
    uses_instance_labels: ClassVar[bool] = False
    """Whether the method is an upper bound that gets the instance labels as a fourth argument, with the user's consent."""

    unused: ClassVar[tuple[str, ...]] = ()
    """Names of the settings of `PretrainConfig` that have no effect."""

    trains: ClassVar[bool] = True
    """False only for `none`, which keeps the initial encoder, without a projector."""
    standardises: ClassVar[bool] = True
    """Whether z may be standardised over a batch. An objective that depends on the scale of z does not allow it."""

    weighting: Callable[[Tensor], Tensor] | None = None
    """Maps the gramian of the tasks' gradients (T, T), double precision, to their weights in the update, shape (T,).

    None: the plain sum of the losses."""

    def __init__(self, settings: PretrainConfig, encoder: Encoder, cells: TrainingCells) -> None:
        super().__init__()
        self.settings, self.cells = settings, cells
        self.own: Any = own_config("method", settings.method, self.Config, settings.options)

    def losses(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """Named scalars, one per task, always in the same order."""
        raise NotImplementedError

    def batches(self, generator: torch.Generator) -> list[Tensor]:
        """Indices of the cells of each step of an epoch. By default, half of each step comes from each side.

        The number of steps must be the same in every epoch.
        """
        return balanced_batches(self.sides(), self.settings.batch_size, generator)

    def before_epoch(self, epoch: int, encoder: Encoder) -> None:
        """Called before each epoch that this process trains. Epochs count from 0."""

    def after_step(self, encoder: Encoder, progress: float) -> None:
        """Called after each step of the optimiser. ``progress`` in (0, 1] is the fraction of the run's steps done."""

    def chance(self, batch: Batch) -> float:
        """The loss named by ``contrast``, in nats, of an encoder that distinguishes nothing."""
        raise NotImplementedError

    def origin(self) -> Tensor | None:
        """The point, shape (D,), from which directions of z are measured; None: zero."""
        return None

    def sides(self) -> list[Tensor]:
        """Indices of the cells of negative slides, and indices of the cells of positive slides."""
        return [torch.nonzero(self.cells.is_positive == side).flatten() for side in (False, True)]


def project_views(encoder: Encoder, views: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Project both views in one forward pass, so that batch norm covers both labels: z_i, z_j, each (B, D)."""
    _, z = encoder(torch.cat(views))
    z_i, z_j = z.chunk(2)
    return z_i, z_j


def load_method(name: str) -> type[Method]:
    """The class of a method. Raises `SettingsError` if the name is unknown or its package cannot be loaded."""
    return METHODS.load(name, Method)


def require_consent(method: type[Method], settings: PretrainConfig) -> None:
    """Refuse settings that the method does not support.

    Raises:
        SettingsError: the method needs ``with_instance_labels`` and it is not set, or it is set and the method does not
            use it; or stages with random weights would be frozen.
    """
    name = settings.method
    if method.uses_instance_labels and not settings.with_instance_labels:
        raise SettingsError(
            f"method '{name}' reads instance labels: it is an upper bound to compare with, and does not learn from slide "
            "labels. To use it, add --with-instance-labels."
        )
    if settings.with_instance_labels and not method.uses_instance_labels:
        raise SettingsError(f"method '{name}' learns from slide labels alone. Remove --with-instance-labels.")
    if settings.frozen_stages and settings.weights == "none":
        raise SettingsError(
            f"--frozen-stages {settings.frozen_stages} would freeze random weights. Add --weights or remove --frozen-stages."
        )
