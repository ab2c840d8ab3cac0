"""Bags of embeddings as fitting sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_FARTHEST = 1e12
# Of the dimensions' typical spread: one that hardly moved in training must not outshout the others when it moves later.
_LEAST_SPREAD = 0.1


@dataclass(frozen=True)
class TrainingBag:
    """One bag's features, float32 (N, D), its label and its patient (the bag's own id where unknown).

    The last ``n_described`` columns are the cells' morphology, those before the encoder's.
    """

    bag_id: str
    values: Tensor
    label: int
    patient: str
    n_described: int = 0


def split(columns: Tensor, n_described: int) -> tuple[Tensor, Tensor]:
    """What the encoder gave and what describes the cells' morphology, (…, D) → (…, D - n), (…, n); the latter may be empty."""
    n_embedded = columns.shape[-1] - n_described
    return columns[..., :n_embedded], columns[..., n_embedded:]


def least_spread(std: Tensor) -> float:
    """The least that any dimension's spread counts for, from the spreads of all of its group, (d,)."""
    return max(_LEAST_SPREAD * float(std.square().mean().sqrt()) if len(std) else 0.0, 1e-6)


@dataclass(frozen=True)
class Standardiser:
    """Brings embeddings to zero mean and unit variance a dimension, by the training bags' own. Both shape (D,)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, bags: Sequence[TrainingBag]) -> Standardiser:
        """Measured over all instances of ``bags``.

        A dimension's spread counts for at least a tenth of the root mean square of all, the encoder's and the morphology's
        each by themselves: networks have dimensions that are silent in training, and a new slide may wake them.
        """
        values = torch.cat([bag.values for bag in bags])
        std = values.std(dim=0, correction=0)
        return cls(
            values.mean(dim=0),
            torch.cat([part.clamp(min=least_spread(part)) for part in split(std, bags[0].n_described)]),
        )

    def __call__(self, values: Tensor) -> Tensor:
        """Embeddings (N, D) → standardised embeddings (N, D).

        They lie within ±1e12: what is farther out differs in nothing that matters, but its squares would overflow float32.
        """
        return ((values - self.mean) / self.std).clamp_(-_FARTHEST, _FARTHEST)
