"""The tiles of a slide, and the cells of all tiles combined: each cell once, in a fixed order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from cytomil.slides.open import Slide

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

STRIP_PX = 1024  # level-0 px; cells sorted by strips are close to each other in the file
OVERLAP_DIAMETERS = 1 / 8  # distance beyond its core within which a tile reports cells
_PER_CELL = ("centres", "radii", "at_edge")
_SAME_CELL = 0.75  # of the larger radius; detections in different tiles that are closer are one cell at a seam


@dataclass(frozen=True)
class Cells:
    """The cells of one slide, in a fixed order: by strips of 1,024 level-0 px from the top, then by x, then by y.

    Args:
        centres: float64 (N, 2), level-0 px, (x, y).
        radii: float64 (N,), level-0 px, of the disc with equal area.
        at_edge: bool (N,), cells whose crop extends beyond the scanned area; by default none.
    """

    centres: Floats
    radii: Floats
    at_edge: Mask = None  # type: ignore[assignment]  # __post_init__ replaces None

    def __post_init__(self) -> None:
        if self.at_edge is None:
            object.__setattr__(self, "at_edge", np.zeros(len(self.radii), bool))

    def __len__(self) -> int:
        return len(self.radii)

    def __getitem__(self, chosen: slice | Sequence[int] | npt.NDArray[Any]) -> Cells:
        """Some of them: a slice, or indices (n,)."""
        return Cells(self.centres[chosen], self.radii[chosen], self.at_edge[chosen])

    @property
    def whole(self) -> Cells:
        """The cells whose crops were scanned completely. Only these are assessed."""
        return self[~self.at_edge]

    @staticmethod
    def joined(parts: Iterable[Cells]) -> Cells:
        """Concatenate the cells of ``parts``."""
        all_parts = [Cells(np.empty((0, 2)), np.empty(0)), *parts]
        return Cells(*(np.concatenate([getattr(p, name) for p in all_parts]) for name in _PER_CELL))


@dataclass(frozen=True)
class Tile:
    """A tile's core in detection pixels, right and bottom exclusive."""

    left: int
    top: int
    right: int
    bottom: int


def tiles_of(width: int, height: int, side: int) -> list[Tile]:
    """Tiles that cover ``width`` × ``height`` detection pixels, row by row."""
    return [
        Tile(left, top, min(left + side, width), min(top + side, height))
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]


@dataclass
class _Detections:
    """The cells detected in one row of tiles, in detection pixels. ``keep`` is False for duplicates."""

    cells: Cells
    cores: Floats
    keep: Mask

    @classmethod
    def of(cls, row: list[tuple[Tile, Cells]]) -> _Detections:
        cores = np.array([(t.left, t.top, t.right, t.bottom) for t, _ in row], dtype=np.float64)
        owners = np.repeat(np.arange(len(row)), [len(cells) for _, cells in row])
        cells = Cells.joined(cells for _, cells in row)
        return cls(cells, cores[owners], np.ones(len(cells), dtype=bool))


def join_tiles(found: Iterable[tuple[Tile, Cells]], diameter_px: float, scale: float) -> Iterator[Cells]:
    """Yield each cell once, in order, as soon as no later tile can affect it.

    Args:
        found: tiles row by row, each with its cells in detection pixels, up to `OVERLAP_DIAMETERS` beyond its core.
        diameter_px: expected diameter, in detection pixels.
        scale: level-0 pixels per detection pixel.
    """
    upper: _Detections | None = None
    waiting = Cells.joined([])
    for top, row in groupby(found, key=lambda one: one[0].top):
        lower = _Detections.of(list(row))
        if upper is not None:
            _drop_duplicates(upper, lower, diameter_px)
            waiting = Cells.joined([waiting, _kept(upper, scale)])
            # Later cells are below the upper edge of this row, or slightly above it.
            complete = (top - OVERLAP_DIAMETERS * diameter_px) * scale // STRIP_PX
            is_ready = waiting.centres[:, 1] // STRIP_PX < complete
            if is_ready.any():
                yield _in_order(waiting[is_ready])
                waiting = waiting[~is_ready]
        upper = lower
    if upper is not None:
        _drop_duplicates(upper, _Detections.of([(Tile(0, 0, 0, 0), Cells.joined([]))]), diameter_px)
        yield _in_order(Cells.joined([waiting, _kept(upper, scale)]))


def _kept(finds: _Detections, scale: float) -> Cells:
    kept = finds.cells[finds.keep]
    return Cells(kept.centres * scale, kept.radii * scale, kept.at_edge)


def _in_order(cells: Cells) -> Cells:
    x, y = cells.centres.T
    return cells[np.lexsort((y, x, y // STRIP_PX))]


def _drop_duplicates(upper: _Detections, lower: _Detections, diameter_px: float) -> None:
    """Clear ``keep`` for one of two detections of the same cell by different tiles, at least one in the upper row."""
    from scipy.spatial import cKDTree

    cells = Cells.joined([upper.cells, lower.cells])
    centres, radii = cells.centres, cells.radii
    cores, keep = (np.concatenate([getattr(row, name) for row in (upper, lower)]) for name in ("cores", "keep"))
    inset = np.minimum(centres - cores[:, :2], cores[:, 2:] - centres).min(1, initial=np.inf)
    # A detection inside the core of its tile has precedence over one outside. Otherwise the earlier tile has.
    near = np.flatnonzero(inset < _SAME_CELL * radii.max(initial=0) + OVERLAP_DIAMETERS * diameter_px)
    if len(near) < 2:
        return
    pairs = near[cKDTree(centres[near]).query_pairs(_SAME_CELL * radii[near].max(), output_type="ndarray")]
    pairs = pairs[pairs.min(1) < len(upper.cells)]
    pairs = pairs[(cores[pairs[:, 0]] != cores[pairs[:, 1]]).any(1)]
    distance = np.linalg.norm(centres[pairs[:, 0]] - centres[pairs[:, 1]], axis=1)
    pairs = pairs[distance < _SAME_CELL * radii[pairs].max(1)]
    for pair in pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]:
        if keep[pair].all():
            keep[max(pair, key=lambda i: (inset[i] < 0, i))] = False
    upper.keep[:], lower.keep[:] = np.split(keep, [len(upper.cells)])


_EDGE_COLOUR = (120, 120, 120)
_CELL_COLOUR = (0, 230, 0)  # more saturated than any stain, so that thin rings are visible on nuclei and cytoplasm
_MARKED_COLOUR = (220, 0, 0)
_MIN_MARKED_RADIUS = 9  # px of the picture; a smaller ring would hide its cell
_FONT_PX = 16


def qc_thumbnail(slide: Slide, cells: Cells, max_px: int = 1600, marked: Sequence[int] = ()) -> Image.Image:
    """An RGB picture of the slide with a ring around every cell, also for a slide without cells.

    Cells at the edge of the scanned area have grey rings.

    Args:
        slide: the open slide.
        cells: its cells.
        max_px: max length of the picture's longer side.
        marked: indices into ``cells``, the most suspicious first. They get a bold ring and their rank, from 1.

    Raises:
        SlideUnreadableError: the slide is damaged.
    """
    picture = Image.fromarray(slide.thumbnail(max_px))
    draw = ImageDraw.Draw(picture)
    scale = picture.width / slide.dimensions[0]
    for (x, y), radius, at_edge in zip(cells.centres * scale, cells.radii * scale, cells.at_edge, strict=True):
        colour = _EDGE_COLOUR if at_edge else _CELL_COLOUR
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=1)
    font = ImageFont.load_default(_FONT_PX)
    # Drawn in reverse order, so that the most suspicious cells are on top.
    for rank, index in reversed(list(enumerate(marked, start=1))):
        x, y = cells.centres[index] * scale
        radius = max(_MIN_MARKED_RADIUS, cells.radii[index] * scale + 2)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=_MARKED_COLOUR, width=3)
        # Next to the ring, but inside the picture for cells at its right or top edge.
        text_x = min(x + radius + 2, picture.width - draw.textlength(str(rank), font) - 2)
        text_y = max(0, y - radius - _FONT_PX / 2)
        draw.text((text_x, text_y), str(rank), _MARKED_COLOUR, font, stroke_width=2, stroke_fill="white")
    return picture
