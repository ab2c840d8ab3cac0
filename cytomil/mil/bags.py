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

    ``groups`` are the widths of groups of columns that belong together, such as an encoder's stages; empty for a single one.
    """

    bag_id: str
    values: Tensor
    label: int
    patient: str
    groups: tuple[int, ...] = ()


def split(columns: Tensor, groups: Sequence[int]) -> tuple[Tensor, ...]:
    """The groups of columns, (…, D) → one (…, width) for each of ``groups``, all of them if there are none."""
    return columns.split(list(groups), dim=-1) if groups else (columns,)


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

        A dimension's spread counts for at least a tenth of the root mean square of its group: networks have dimensions that
        are silent in training, and a new slide may wake them.
        """
        values = torch.cat([bag.values for bag in bags])
        std = values.std(dim=0, correction=0)
        return cls(
            values.mean(dim=0),
            torch.cat([part.clamp(min=least_spread(part)) for part in split(std, bags[0].groups)]),
        )

    def __call__(self, values: Tensor) -> Tensor:
        """Embeddings (N, D) → standardised embeddings (N, D).

        They lie within ±1e12: what is farther out differs in nothing that matters, but its squares would overflow float32.
        """
        return ((values - self.mean) / self.std).clamp_(-_FARTHEST, _FARTHEST)
