"""Which cells make up the steps of an epoch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def deal_pools(
    pools: Sequence[Tensor], batch_size: int, generator: torch.Generator, length: int | None = None
) -> list[Tensor]:
    """Indices of one epoch's steps, an equal share of each from every pool, shuffled.

    Every cell of the largest pool comes once; the smaller pools are dealt again, reshuffled, until they fill their
    shares. So with pools of equal size, or a single one, every cell comes exactly once. Steps differ in size by one cell
    a pool at most. With ``length``, each pool deals that many cells, whatever its size.

    Args:
        pools: index tensors, none of them empty.
        batch_size: wanted cells a step.
        generator: what shuffles.
        length: cells dealt from each pool; None: as many as the largest has.

    Returns:
        One tensor a step; in each, the first pool's cells come first.
    """
    longest = length or max(map(len, pools))
    n_steps = max(1, round(longest * len(pools) / batch_size))
    dealt = [_deal(pool, longest, generator).tensor_split(n_steps) for pool in pools]
    return [torch.cat(parts) for parts in zip(*dealt, strict=True)]


def _deal(pool: Tensor, n: int, generator: torch.Generator) -> Tensor:
    rounds = -(-n // len(pool))
    return torch.cat([pool[torch.randperm(len(pool), generator=generator)] for _ in range(rounds)])[:n]
