"""One view of the cells: some of their columns in few whitened components, counted from where the bag's own cells lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from cytomil.mil.aggregators.components import Components

_TINY = 1e-12


class View(nn.Module):
    """Columns ``start`` to ``stop`` of the features in whitened principal components, relative to the bag.

    Slides differ in stain and focus, so that what is far from normal may be the slide and not the cell. Each bag's own
    median is therefore taken off its cells, but only so far as bags differ by more than the draw of their cells explains: in
    component j by the share τ²/(τ² + σ²/n), the best linear predictor of a random effect (Henderson, Biometrics 1975). τ² is
    the variance between bags, σ²/n that of a median of n cells, measured by halving each training bag. Bags drawn from one
    pool of cells keep their medians; bags of people lose them.

    Args:
        start: first column.
        stop: one past the last column.
        n_components: number of components K.
    """

    centre: Tensor
    between: Tensor
    within: Tensor

    def __init__(self, start: int, stop: int, n_components: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop
        self.components = Components(stop - start, n_components)
        for name in ("centre", "between", "within"):
            self.register_buffer(name, torch.zeros(n_components, dtype=torch.float64))

    @classmethod
    def learn(cls, bags: Sequence[Tensor], cells: Tensor, start: int, stop: int, most: int, seed: int) -> Self:
        """Learn at most ``most`` components of ``cells``, (M ≥ 2, D), and how the ``bags``, (N, D) each, differ in them."""
        components = Components.learn(cells[:, start:stop], most)
        view = cls(start, stop, components.directions.shape[1])
        view.components = components
        projected = [view.project(bag) for bag in bags]
        medians = torch.stack([bag.median(dim=0).values for bag in projected])
        view.centre.copy_(medians.mean(dim=0))
        halved = [_halves_apart(bag, seed) * len(bag) for bag in projected if len(bag) > 1]
        if halved and len(bags) > 1:
            view.within.copy_(torch.stack(halved).mean(dim=0))
            explained = torch.stack([view.within / len(bag) for bag in projected]).mean(dim=0)
            # A variance of few bags is itself uncertain: one standard error of it is not taken for a difference.
            by_chance = explained * (1 + (2 / (len(bags) - 1)) ** 0.5)
            view.between.copy_((medians.var(dim=0) - by_chance).clamp(min=0))
        return view

    def project(self, instances: Tensor) -> Tensor:
        """Instances (N, D) → their components, float64 (N, K), not yet relative to their bag."""
        return self.components(instances[:, self.start : self.stop])

    def relative(self, projected: Tensor) -> Tensor:
        """A whole bag's components (N, K) → the same with the bag's own offset taken off."""
        share = self.between / (self.between + self.within / len(projected) + _TINY)
        return projected - share * (projected.median(dim=0).values - self.centre)


def _halves_apart(bag: Tensor, seed: int) -> Tensor:
    """The variance of a bag's median, estimated from its halves: for halves' medians a and b it is (a - b)² / 4."""
    order = torch.randperm(len(bag), generator=torch.Generator().manual_seed(seed))
    half = len(bag) // 2
    first, second = bag[order[:half]], bag[order[half : 2 * half]]
    return (first.median(dim=0).values - second.median(dim=0).values).square() / 4
