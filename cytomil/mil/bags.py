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
    """One bag's features, its label and its patient (the bag's own id where unknown).

    ``stored`` (N, D) are the features as memory holds them, float16 or float32. ``groups`` are the widths of groups of columns
    that belong together, such as an encoder's stages; empty for a single one. ``standardise`` is applied on reading.
    """

    bag_id: str
    stored: Tensor
    label: int
    patient: str
    groups: tuple[int, ...] = ()
    standardise: Standardiser | None = None

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def dim(self) -> int:
        """The number of features D."""
        return self.stored.shape[1]

    @property
    def values(self) -> Tensor:
        """The features, float32 (N, D), standardised where that was asked for; made anew at each call, to save memory."""
        return self.some(slice(None))

    def some(self, cells: slice | Tensor) -> Tensor:
        """`values` of some cells."""
        kept = self.stored[cells].float()
        return kept if self.standardise is None else self.standardise(kept)


def drawn_together(bags: Sequence[TrainingBag], most: int, seed: int) -> Tensor:
    """At most ``most`` of all the bags' cells, drawn without replacement: float32 (≤ most, D)."""
    sizes = [len(bag) for bag in bags]
    drawn = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(seed))[:most].sort().values
    starts = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    bounds = torch.searchsorted(drawn, torch.tensor(starts)).tolist()
    return torch.cat(
        [
            bag.some(drawn[first:last] - start)
            for bag, start, first, last in zip(bags, starts, bounds, bounds[1:], strict=False)
        ]
    )


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
        n = sum(len(bag) for bag in bags)
        # A bag at a time, and about the mean: the sum of squares itself would lose the spread of what lies far from 0.
        mean = sum((bag.values.double().sum(dim=0) for bag in bags), start=torch.zeros(bags[0].dim).double()) / n
        squares = ((bag.values.double() - mean).square().sum(dim=0) for bag in bags)
        std = (sum(squares, start=torch.zeros_like(mean)) / n).sqrt().float()
        return cls(
            mean.float(),
            torch.cat([part.clamp(min=least_spread(part)) for part in split(std, bags[0].groups)]),
        )

    def __call__(self, values: Tensor) -> Tensor:
        """Embeddings (N, D) → standardised embeddings (N, D).

        They lie within ±1e12: what is farther out differs in nothing that matters, but its squares would overflow float32.
        """
        return ((values - self.mean) / self.std).clamp_(-_FARTHEST, _FARTHEST)
