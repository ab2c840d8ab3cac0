"""The tiles in which a slide is looked through, and their finds joined: each cell once, in a fixed order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

STRIP_PX = 1024  # level-0 px; cells sorted strip by strip lie close to each other in the file
AROUND = 1 / 8  # diameters; how far beyond its core a tile tells its finds
_SAME_CELL = 0.75  # of the larger radius: two finds of different tiles this close are one cell cut by a seam


@dataclass(frozen=True)
class Cells:
    """The cells of one slide, in a fixed order (by strips of 1,024 level-0 px from the top, within one by x then y).

    ``centres``: float64 (N, 2), level-0 px, (x, y). ``radii``: float64 (N,), level-0 px, of the disc of equal area.
    """

    centres: Floats
    radii: Floats

    def __len__(self) -> int:
        return len(self.radii)

    def __getitem__(self, chosen: slice | Sequence[int] | npt.NDArray[Any]) -> Cells:
        """Some of them: a slice, or indices (n,)."""
        return Cells(self.centres[chosen], self.radii[chosen])

    @staticmethod
    def joined(parts: Iterable[Cells]) -> Cells:
        """All cells of ``parts``, one part after another."""
        all_parts = [Cells(np.empty((0, 2)), np.empty(0)), *parts]
        return Cells(np.concatenate([p.centres for p in all_parts]), np.concatenate([p.radii for p in all_parts]))


@dataclass(frozen=True)
class Tile:
    """A tile's core in detection pixels, right and bottom exclusive."""

    left: int
    top: int
    right: int
    bottom: int


def tiles_of(width: int, height: int, side: int) -> list[Tile]:
    """Cover ``width`` × ``height`` detection pixels, row by row."""
    return [
        Tile(left, top, min(left + side, width), min(top + side, height))
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]


@dataclass
class _Finds:
    """What the tiles of one row found, in detection pixels; ``keep`` marks those that are not another one's second find."""

    centres: Floats
    radii: Floats
    cores: Floats
    keep: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, row: list[tuple[Tile, Floats, Floats]]) -> _Finds:
        centres = np.concatenate([centres for _, centres, _ in row])
        radii = np.concatenate([radii for _, _, radii in row])
        cores = np.array([(t.left, t.top, t.right, t.bottom) for t, _, _ in row], dtype=np.float64)
        owners = np.repeat(np.arange(len(row)), [len(radii) for _, _, radii in row])
        return cls(centres, radii, cores[owners], np.ones(len(radii), dtype=bool))


def join_tiles(found: Iterable[tuple[Tile, Floats, Floats]], diameter_px: float, scale: float) -> Iterator[Cells]:
    """Yield the cells in their order, each cell once, as soon as no tile to come can change them.

    ``found``: tiles row by row, each with its finds' centres (n, 2) and radii (n,) in detection pixels, up to `AROUND`
    diameters beyond its core; ``diameter_px`` expected, in the same. ``scale``: level-0 pixels per detection pixel.
    """
    upper: _Finds | None = None
    waiting = Cells.joined([])
    for top, row in groupby(found, key=lambda one: one[0].top):
        lower = _Finds.of(list(row))
        if upper is not None:
            _drop_second_finds(upper, lower, diameter_px)
            waiting = Cells.joined([waiting, _kept(upper, scale)])
            # Finds still to come lie below this row's upper edge, or just above it.
            complete = (top - AROUND * diameter_px) * scale // STRIP_PX
            is_ready = waiting.centres[:, 1] // STRIP_PX < complete
            if is_ready.any():
                yield _in_order(waiting[is_ready])
                waiting = waiting[~is_ready]
        upper = lower
    if upper is not None:
        _drop_second_finds(upper, _Finds.of([(Tile(0, 0, 0, 0), np.empty((0, 2)), np.empty(0))]), diameter_px)
        yield _in_order(Cells.joined([waiting, _kept(upper, scale)]))


def _kept(finds: _Finds, scale: float) -> Cells:
    return Cells(finds.centres[finds.keep] * scale, finds.radii[finds.keep] * scale)


def _in_order(cells: Cells) -> Cells:
    x, y = cells.centres.T
    return cells[np.lexsort((y, x, y // STRIP_PX))]


def _drop_second_finds(upper: _Finds, lower: _Finds, diameter_px: float) -> None:
    """Clear ``keep`` of the second find of every cell that two tiles saw, one of the tiles at least in the upper row."""
    from scipy.spatial import cKDTree

    centres, radii, cores, keep = (
        np.concatenate([getattr(row, name) for row in (upper, lower)]) for name in ("centres", "radii", "cores", "keep")
    )
    inset = np.minimum(centres - cores[:, :2], cores[:, 2:] - centres).min(1, initial=np.inf)
    # A find outside its own tile's core gives way to one inside; between equals the earlier tile's stays.
    near = np.flatnonzero(inset < _SAME_CELL * radii.max(initial=0) + AROUND * diameter_px)
    if len(near) < 2:
        return
    pairs = near[cKDTree(centres[near]).query_pairs(_SAME_CELL * radii[near].max(), output_type="ndarray")]
    pairs = pairs[pairs.min(1) < len(upper.radii)]
    pairs = pairs[(cores[pairs[:, 0]] != cores[pairs[:, 1]]).any(1)]
    apart = np.linalg.norm(centres[pairs[:, 0]] - centres[pairs[:, 1]], axis=1)
    pairs = pairs[apart < _SAME_CELL * radii[pairs].max(1)]
    for pair in pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]:
        if keep[pair].all():
            keep[max(pair, key=lambda i: (inset[i] < 0, i))] = False
    upper.keep[:], lower.keep[:] = np.split(keep, [len(upper.radii)])
