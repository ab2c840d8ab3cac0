"""What a pretraining method is: which losses it takes from a batch, and how their gradients become one update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cytomil.encoders.architecture import Encoder
from cytomil.settings import PretrainSettings


@dataclass(frozen=True)
class Batch:
    """Cells of one step. ``views`` has ``n_views`` tensors (B, 3, S, S); ``is_positive`` (B,) is the slide's label."""

    views: tuple[Tensor, ...]
    is_positive: Tensor


@dataclass(frozen=True)
class Method:
    """A pretraining method, made for one run.

    ``losses`` maps encoder and batch to named scalars, one a task, in a fixed order. ``combine`` turns the tasks' flat
    gradients, shape (T, P), into one update (P,); None means the plain sum, which one backward pass gives.
    ``head`` holds weights that are trained along and thrown away.
    """

    losses: Callable[[Encoder, Batch], dict[str, Tensor]]
    combine: Callable[[Tensor], Tensor] | None = None
    n_views: int = 2
    head: nn.Module | None = None


MethodMaker = Callable[[PretrainSettings], Method]


def project_views(encoder: Encoder, batch: Batch) -> tuple[Tensor, Tensor]:
    """Both views through the encoder in one forward pass, so that batch norm sees both labels: z_i, z_j, each (B, D)."""
    _, z = encoder(torch.cat(batch.views))
    z_i, z_j = z.chunk(2)
    return z_i, z_j
