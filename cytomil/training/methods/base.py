"""What a pretraining method is, and how one is loaded by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cytomil.config import Config, own_config
from cytomil.encoders.architecture import Encoder
from cytomil.errors import SettingsError
from cytomil.registry import METHODS
from cytomil.training.batches import deal_pools
from cytomil.training.cells import TrainingCells
from cytomil.training.config import PretrainConfig


@dataclass(frozen=True)
class Batch:
    """Cells of one step.

    ``views`` has ``n_views`` tensors (B, 3, S, S); ``is_positive`` (B,) is the slide's label, ``indices`` (B,), on the
    CPU, each cell's place among the training cells.
    """

    views: tuple[Tensor, ...]
    is_positive: Tensor
    indices: Tensor


class Method(nn.Module):
    """A pretraining method, made for one run. A subclass gives `losses`, and what else it does otherwise than here.

    What of it is a parameter that requires a gradient is trained along with the encoder and thrown away in the end. All
    of its state (parameters, buffers, modules of its own) goes into the checkpoints, so that an interrupted run goes on
    as it would have; what changes from step to step must therefore be a parameter or a buffer.
    """

    Config: ClassVar[type[Config]] = Config
    """The method's own settings: a subclass of `cytomil.config.Config`. ``self.own`` is an instance of it."""
    n_views: ClassVar[int] = 2
    """How many views of each cell `losses` takes."""
    turns: ClassVar[bool] = True
    """Whether views turn the cells by quarters."""
    contrast: ClassVar[str] = ""
    """Which loss `chance` speaks of; empty where none has a chance level."""
    classes: ClassVar[bool] = False
    """Whether the objective's optimum is one point a class, so that embeddings on a line are no collapse."""
    uses_instance_labels: ClassVar[bool] = False
    """True only of a ceiling: made with a fourth argument, the instance labels, and never without the user's consent."""

    trains: ClassVar[bool] = True
    """False only of `none`: the encoder is kept as it starts, and has no projector."""
    standardises: ClassVar[bool] = True
    """Whether z may be standardised over a batch, as the settings say; an objective of z's own scale forbids it."""

    weigh: Callable[[Tensor], Tensor] | None = None
    """What each task's gradient counts in the update, shape (T,), from their inner products (T, T), in double precision.

    None: their plain sum."""

    def __init__(self, settings: PretrainConfig, encoder: Encoder, cells: TrainingCells) -> None:
        super().__init__()
        self.settings, self.cells = settings, cells
        self.own: Any = own_config("method", settings.method, self.Config, settings.options)

    def losses(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """Named scalars, one a task, always in the same order."""
        raise NotImplementedError

    def batches(self, generator: torch.Generator) -> list[Tensor]:
        """Indices of the cells of one epoch's steps; as many steps every epoch. Here: half of each from either side."""
        return deal_pools(self.sides(), self.settings.batch_size, generator)

    def before_epoch(self, epoch: int, encoder: Encoder) -> None:
        """Called before each epoch, counted from 0; a resumed run calls it for the epochs it trains."""

    def after_step(self, encoder: Encoder, progress: float) -> None:
        """Called after each step of the optimiser; ``progress`` is the share of the run's steps done, above 0 to 1."""

    def chance(self, batch: Batch) -> float:
        """What the loss named by ``contrast`` is, in nats, for an encoder that tells nothing apart."""
        raise NotImplementedError

    def origin(self) -> Tensor | None:
        """The point, shape (D,), from which the directions of z are read; None: zero."""
        return None

    def sides(self) -> list[Tensor]:
        """Indices of the cells of negative slides, and of those of positive ones."""
        return [torch.nonzero(self.cells.is_positive == side).flatten() for side in (False, True)]


def project_views(encoder: Encoder, views: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Both views through the encoder in one forward pass, so that batch norm sees both labels: z_i, z_j, each (B, D)."""
    _, z = encoder(torch.cat(views))
    z_i, z_j = z.chunk(2)
    return z_i, z_j


def load_method(name: str) -> type[Method]:
    """The class of a method. Raises `SettingsError` for a name nobody has, or one whose package does not load."""
    return METHODS.load(name, Method)


def require_consent(method: type[Method], settings: PretrainConfig) -> None:
    """Refuse settings that ask of a method what it does not do.

    Raises `SettingsError` where instance labels are read without ``with_instance_labels``, or it is given in
    vain; or stages are frozen that have only random weights.
    """
    name = settings.method
    if method.uses_instance_labels and not settings.with_instance_labels:
        raise SettingsError(
            f"method '{name}' reads instance labels. It is a ceiling to compare with, not a way to learn from slide "
            "labels; if that is what you want, add --with-instance-labels."
        )
    if settings.with_instance_labels and not method.uses_instance_labels:
        raise SettingsError(f"method '{name}' learns from slide labels alone. Leave out --with-instance-labels.")
    if settings.frozen_stages and settings.weights == "none":
        raise SettingsError(
            f"--frozen-stages {settings.frozen_stages} would keep random weights as they are. Name --weights, or leave it out."
        )
