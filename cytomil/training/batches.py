"""The cells of each step of an epoch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
