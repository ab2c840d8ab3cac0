"""The measures of a cell in self-paced: groups of columns in a few whitened components, relative to the cell's bag."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import IO, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from cytomil.mil.bags import TrainingBag, draw_cells

IN_MEMORY = 20_000
"""Number of cells whose components are held in memory. Those of a larger bag are in a temporary file until it is complete."""
_MAX_CELLS = 5_000
_MIN_RELATIVE_VARIANCE = 1e-6
_FULL_DECOMPOSITION_UP_TO = 256
_BLOCK = 8192
_MIN_DISTANCE = 1e-6
_EPS = 1e-12


class Components(nn.Module):
    """The first principal components of some cells, each scaled to variance 1 over them.

    A difference of a few cells then counts as much as one of all cells.
    """

    origin: Tensor
    directions: Tensor

    def __init__(self, in_dim: int, n_components: int) -> None:
        super().__init__()
        self.register_buffer("origin", torch.zeros(in_dim, dtype=torch.float64))
        self.register_buffer("directions", torch.zeros((in_dim, n_components), dtype=torch.float64))

    @classmethod
    def learn(cls, cells: Tensor, max_components: int) -> Self:
        """Learn up to ``max_components`` components of ``cells``, (N ≥ 2, D)."""
        from sklearn.decomposition import PCA

        n_components = min(max_components, cells.shape[1], len(cells) - 1)
        if cells.shape[1] <= _FULL_DECOMPOSITION_UP_TO or n_components > cells.shape[1] // 2:
            found = PCA(n_components, svd_solver="covariance_eigh").fit(cells.double().numpy())
        else:
            # With many dimensions, only the leading components are computed: decomposing all of them takes minutes.
            found = PCA(n_components, svd_solver="randomized", random_state=0).fit(cells.float().numpy())
        # A direction without variation has no information, and must not be scaled up.
        max_variance = found.explained_variance_[0] or 1.0  # 0 if all cells are equal
        lengths = np.sqrt(np.maximum(found.explained_variance_, _MIN_RELATIVE_VARIANCE * max_variance))
        model = cls(cells.shape[1], n_components)
        model.origin.copy_(torch.from_numpy(found.mean_))
        model.directions.copy_(torch.from_numpy(found.components_.T / lengths))
        return model

    def forward(self, instances: Tensor) -> Tensor:
        """(N, D) → float64 (N, n_components)."""
        # In single precision, like the features. This is twice as fast, and precise enough because of the unit spread.
        return ((instances - self.origin.float()) @ self.directions.float()).double()


class Subspace(nn.Module):
    """Columns ``start`` to ``stop`` of the features in whitened principal components, relative to the bag.

    Slides differ in stain and focus, so a cell may be far from normal because of its slide. Each bag's median is therefore
    subtracted from its cells. It is first multiplied by a factor below 1, because the draw of cells explains a part of the
    differences between medians. In each component, the factor is τ²/(τ² + σ²/n), the best linear predictor of a random
    effect (Henderson, Biometrics 1975). Here τ² is the variance between bags, and σ²/n is that of a median of n cells. The
    latter is measured by halving each training bag. For bags drawn from one pool of cells, almost nothing is subtracted.
    For bags of different people, almost the whole median is.

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
    def learn(cls, cells: Tensor, start: int, stop: int, max_components: int) -> Self:
        """Learn the components of ``cells``, (M ≥ 2, D). `compare` learns how bags differ."""
        components = Components.learn(cells[:, start:stop], max_components)
        subspace = cls(start, stop, components.directions.shape[1])
        subspace.components = components
        return subspace

    def compare(self, bags: Sequence[BagOutline]) -> None:
        """Learn how bags differ."""
        medians = torch.stack([bag.median for bag in bags])
        self.centre.copy_(medians.mean(dim=0))
        halved = [bag.median_variance * bag.size for bag in bags if bag.size > 1]
        if halved and len(bags) > 1:
            self.within.copy_(torch.stack(halved).mean(dim=0))
            explained = torch.stack([self.within / bag.size for bag in bags]).mean(dim=0)
            # The variance over few bags is uncertain, so only what exceeds one standard error counts as a difference.
            by_chance = explained * (1 + (2 / (len(bags) - 1)) ** 0.5)
            self.between.copy_((medians.var(dim=0) - by_chance).clamp(min=0))

    def project(self, instances: Tensor) -> Tensor:
        """Instances (N, D) → their components, float64 (N, K), not yet relative to their bag."""
        return self.components(instances[:, self.start : self.stop])

    def relative(self, projected: Tensor) -> Tensor:
        """A whole bag's components (N, K) → the same without the bag's own offset."""
        return self.relative_to(projected, projected.median(dim=0).values, len(projected))

    def relative_to(self, projected: Tensor, median: Tensor, size: int) -> Tensor:
        """Components (n, K) of some cells of a bag of ``size`` cells with this median → the same, relative to the bag."""
        factor = self.between / (self.between + self.within / size + _EPS)
        return projected - factor * (median - self.centre)


@dataclass(frozen=True)
class BagOutline:
    """A bag's components, reduced to what fitting needs.

    Args:
        kept: components of some cells, (n, K).
        median: of all cells, (K,).
        median_variance: variance of the median, (K,), estimated from the bag's halves.
        size: number of all cells.
    """

    kept: Tensor
    median: Tensor
    median_variance: Tensor
    size: int

    @classmethod
    def of(cls, projected: Tensor, kept: Tensor, seed: int) -> Self:
        """Outline a bag's components, (N ≥ 1, K); ``kept`` are indices of cells."""
        variance = _median_variance(projected, seed) if len(projected) > 1 else torch.zeros_like(projected[0])
        return cls(projected[kept], projected.median(dim=0).values, variance, len(projected))


def learn_subspaces(
    bags: Sequence[TrainingBag], spans: Sequence[tuple[int, int, int]], kept: Sequence[Tensor], seed: int
) -> tuple[list[Subspace], list[list[Tensor]]]:
    """Learn one subspace per span of columns, reading the bags one at a time.

    Args:
        bags: none of them is empty, and together they have at least two cells.
        spans: first column, one past the last, and the maximum number of components.
        kept: indices of each bag's cells that are wanted.
        seed: of the cells that components are learnt from, and of the bags' halves.

    Returns:
        The subspaces, and per subspace and bag the kept cells, float64 (n, K), relative to their bag.
    """
    some = draw_cells(bags, _MAX_CELLS, seed)
    subspaces = [Subspace.learn(some, *span) for span in spans]
    outlines: list[list[BagOutline]] = [[] for _ in subspaces]
    for bag, cells in zip(bags, kept, strict=True):
        values = bag.values
        for subspace, own in zip(subspaces, outlines, strict=True):
            own.append(BagOutline.of(subspace.project(values), cells, seed))
    for subspace, own in zip(subspaces, outlines, strict=True):
        subspace.compare(own)
    relative = [
        [subspace.relative_to(one.kept, one.median, one.size) for one in own]
        for subspace, own in zip(subspaces, outlines, strict=True)
    ]
    return subspaces, relative


def _median_variance(bag: Tensor, seed: int) -> Tensor:
    """The variance of a bag's median, from the medians a and b of its halves: (a - b)² / 4."""
    order = torch.randperm(len(bag), generator=torch.Generator().manual_seed(seed))
    half = len(bag) // 2
    first, second = bag[order[:half]], bag[order[half : 2 * half]]
    return (first.median(dim=0).values - second.median(dim=0).values).square() / 4


class SubspacesReading:
    """A `Reading` that keeps a bag's components until all of it has been read and its medians can be computed.

    For a bag of more than 20,000 cells, the medians are those of 10,000 to 20,000 evenly spread cells.

    Args:
        subspaces: what is kept of each block.
        suspicion: components of some cells relative to their bag, one (n, K) per subspace → distances, float32 (n,).
        probability: the bag's distances (N,) → its probability.
    """

    def __init__(
        self,
        subspaces: Sequence[Subspace],
        suspicion: Callable[[Sequence[Tensor]], Tensor],
        probability: Callable[[Tensor], float],
    ) -> None:
        self._subspaces, self._suspicion, self._probability = list(subspaces), suspicion, probability
        self._widths = [len(subspace.centre) for subspace in self._subspaces]
        self._row_bytes = 4 * sum(self._widths)
        # Closed with this reading, which exists only while one bag is read.
        self._spool = cast(IO[bytes], SpooledTemporaryFile(max_size=IN_MEMORY * self._row_bytes))  # noqa: SIM115
        self._count = 0

    def add(self, instances: Tensor) -> None:
        """See `Reading`."""
        joined = torch.cat([subspace.project(instances).float() for subspace in self._subspaces], dim=1)
        self._spool.write(joined.numpy().tobytes())
        self._count += len(joined)

    def result(self) -> tuple[float, Tensor]:
        """See `Reading`."""
        step = -(-self._count // IN_MEMORY)
        medians = self._medians(step)
        # Filled in place, because joining pieces would need their memory twice.
        distances = torch.empty(self._count)
        for start, block in self._blocks():
            distances[start : start + len(block)] = self._of_block(block, medians)
        self._spool.close()
        return self._probability(distances), distances

    def _medians(self, step: int) -> list[Tensor]:
        """The median of every ``step``-th cell, (K,) per subspace."""
        drawn = torch.empty(-(-self._count // step), sum(self._widths))
        for start, block in self._blocks():
            some = block[-start % step :: step]
            begin = -(-start // step)
            drawn[begin : begin + len(some)] = some
        return [part.median(dim=0).values.double() for part in drawn.split(self._widths, dim=1)]

    def _of_block(self, block: Tensor, medians: Sequence[Tensor]) -> Tensor:
        relative = [
            subspace.relative_to(part.double(), median, self._count)
            for subspace, part, median in zip(self._subspaces, block.split(self._widths, dim=1), medians, strict=True)
        ]
        return self._suspicion(relative).clamp(min=_MIN_DISTANCE)

    def _blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Each block's offset in the bag and its components, float32 (n, sum of K)."""
        self._spool.seek(0)
        for start in range(0, self._count, _BLOCK):
            read = bytearray(self._spool.read(_BLOCK * self._row_bytes))
            yield start, torch.from_numpy(np.frombuffer(read, np.float32).reshape(-1, sum(self._widths)))
