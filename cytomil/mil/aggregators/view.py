"""One view of the cells: some of their columns in few whitened components, counted from where the bag's own cells lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from cytomil.mil.aggregators.components import Components
from cytomil.mil.bags import TrainingBag, drawn_together

_MOST_CELLS = 5_000
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
    def learn(cls, cells: Tensor, start: int, stop: int, most: int) -> Self:
        """Learn at most ``most`` components of ``cells``, (M ≥ 2, D); how bags differ is learnt by `compare`."""
        components = Components.learn(cells[:, start:stop], most)
        view = cls(start, stop, components.directions.shape[1])
        view.components = components
        return view

    def compare(self, bags: Sequence[BagOutline]) -> None:
        """Learn how bags differ."""
        medians = torch.stack([bag.median for bag in bags])
        self.centre.copy_(medians.mean(dim=0))
        halved = [bag.halves_apart * bag.size for bag in bags if bag.size > 1]
        if halved and len(bags) > 1:
            self.within.copy_(torch.stack(halved).mean(dim=0))
            explained = torch.stack([self.within / bag.size for bag in bags]).mean(dim=0)
            # A variance of few bags is itself uncertain: one standard error of it is not taken for a difference.
            by_chance = explained * (1 + (2 / (len(bags) - 1)) ** 0.5)
            self.between.copy_((medians.var(dim=0) - by_chance).clamp(min=0))

    def project(self, instances: Tensor) -> Tensor:
        """Instances (N, D) → their components, float64 (N, K), not yet relative to their bag."""
        return self.components(instances[:, self.start : self.stop])

    def relative(self, projected: Tensor) -> Tensor:
        """A whole bag's components (N, K) → the same with the bag's own offset taken off."""
        return self.relative_to(projected, projected.median(dim=0).values, len(projected))

    def relative_to(self, projected: Tensor, median: Tensor, size: int) -> Tensor:
        """Components of some cells (n, K) of a bag of ``size`` cells whose median is known → the same, relative to the bag."""
        share = self.between / (self.between + self.within / size + _TINY)
        return projected - share * (median - self.centre)


@dataclass(frozen=True)
class BagOutline:
    """What a view keeps of a bag: some cells' components (n, K), all cells' ``median`` (K,), and their number.

    ``halves_apart`` (K,) is the variance of the median, estimated from the bag's halves.
    """

    kept: Tensor
    median: Tensor
    halves_apart: Tensor
    size: int

    @classmethod
    def of(cls, projected: Tensor, kept: Tensor, seed: int) -> Self:
        """Of a bag's components (N ≥ 1, K); ``kept`` are positions of cells."""
        halves_apart = _halves_apart(projected, seed) if len(projected) > 1 else torch.zeros_like(projected[0])
        return cls(projected[kept], projected.median(dim=0).values, halves_apart, len(projected))


def learn_views(
    bags: Sequence[TrainingBag], spans: Sequence[tuple[int, int, int]], kept: Sequence[Tensor], seed: int
) -> tuple[list[View], list[list[Tensor]]]:
    """Learn a view for each span of columns, reading the bags one at a time.

    Args:
        bags: none of them empty, of two cells or more together.
        spans: first column, one past the last, and the most components.
        kept: each bag's cells that are wanted, as positions.
        seed: of the cells that components are learnt from, and of the bags' halves.

    Returns:
        The views, and for each view and bag the kept cells, float64 (n, K), relative to their bag.
    """
    some = drawn_together(bags, _MOST_CELLS, seed)
    views = [View.learn(some, *span) for span in spans]
    outlines: list[list[BagOutline]] = [[] for _ in views]
    for bag, cells in zip(bags, kept, strict=True):
        values = bag.values
        for view, of_view in zip(views, outlines, strict=True):
            of_view.append(BagOutline.of(view.project(values), cells, seed))
    for view, of_view in zip(views, outlines, strict=True):
        view.compare(of_view)
    seen = [
        [view.relative_to(one.kept, one.median, one.size) for one in of_view]
        for view, of_view in zip(views, outlines, strict=True)
    ]
    return views, seen


def _halves_apart(bag: Tensor, seed: int) -> Tensor:
    """The variance of a bag's median, estimated from its halves: for halves' medians a and b it is (a - b)² / 4."""
    order = torch.randperm(len(bag), generator=torch.Generator().manual_seed(seed))
    half = len(bag) // 2
    first, second = bag[order[:half]], bag[order[half : 2 * half]]
    return (first.median(dim=0).values - second.median(dim=0).values).square() / 4
