"""Find the cells of one tile, and combine those of all tiles: each cell once, in a fixed order.

Every step on a tile uses only a bounded neighbourhood of a pixel (`margin_px`). A tile with that margin therefore gives
the same cells as the whole slide.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from cytomil.pixels import optical_density
from cytomil.slides.open import Slide

Levels = npt.NDArray[np.int16]

_STEPS_BETWEEN_CHECKS = 4  # comparing two images takes as long as a step


def reconstruct(seed: Levels, mask: Levels) -> Levels:
    """Reconstruct ``mask`` (h, w) from ``seed`` (h, w) by eight-connected dilation; ``seed`` ≤ ``mask`` everywhere.

    The result equals that of `skimage.morphology.reconstruction` (Vincent 1993), which first sorts all pixels. Here every
    step dilates the whole image by one pixel, until nothing changes. This is much faster if values spread over short
    distances, as within cells: it takes 20 to 50 steps, while sorting takes as long as about 2,000.
    """
    narrow = np.uint8 if mask.size and mask.min() >= 0 and mask.max() <= np.iinfo(np.uint8).max else mask.dtype
    limit = mask.astype(narrow)
    grown = seed.astype(narrow)
    while True:
        before = grown
        for _ in range(_STEPS_BETWEEN_CHECKS):
            grown = _dilated(grown)
            np.minimum(grown, limit, out=grown)
        if np.array_equal(before, grown):
            return grown.astype(mask.dtype)


def _dilated(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The maximum of each pixel and its eight neighbours."""
    across = image.copy()
    np.maximum(across[:, 1:], image[:, :-1], out=across[:, 1:])
    np.maximum(across[:, :-1], image[:, 1:], out=across[:, :-1])
    both = across.copy()
    np.maximum(both[1:], across[:-1], out=both[1:])
    np.maximum(both[:-1], across[1:], out=both[:-1])
    return both


FloatImage = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

BLOCK_PX = 8  # the background is estimated on blocks with this side, in detection pixels
_BACKGROUND_WINDOW = 2.0  # diameters; the closing removes cells, and keeps wider changes of the background
_BACKGROUND_RANK = 95  # percentile instead of the extreme, so that a single reflection or dust grain does not count
_MIN_CONTRAST = 0.05  # optical density; a fainter cell cannot be distinguished from noise
_CONTRAST_FRACTION = 0.45  # of the foreground's local mean contrast; near the half-height contour of an edge
_HOLE_AREA = 0.25  # of the expected cell's area; fills the pale centre of a red cell, but not a gap between cells
_WAIST = 0.12  # a waist narrower than exp(-0.12) = 89 % of the smaller cell's radius separates two cells
_LOG_STEPS = 40  # grey levels per unit of log radius: small integers make the reconstruction faster
_NUCLEUS_FACTOR = 1.15  # a nucleus in a sheet of cytoplasm is darker than its surroundings by this factor
_DIAMETER_RANGE = (0.25, 3.0)  # of the expected diameter


def margin_px(diameter_px: float) -> int:
    """Radius of the neighbourhood that the detection uses, in px, a multiple of the block."""
    return -(-int(4 * diameter_px) // BLOCK_PX) * BLOCK_PX


def has_foreground(rgb: npt.NDArray[np.uint8]) -> bool:
    """Whether a low-power tile (h, w, 3) contains anything darker than its background."""
    density = optical_density(rgb)
    return bool((density.max((0, 1)) - density.min((0, 1))).max() > _MIN_CONTRAST / 3)


def detect(rgb: npt.NDArray[np.uint8], diameter_px: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The cells of a tile (h, w, 3): centres (N, 2) as (x, y) and radii (N,), in px of the tile.

    The radius of a cell is that of the disc with equal area. Cells from 0.25 to 3 times ``diameter_px`` are found. In
    wider foreground (tissue, a sheet of cytoplasm), nuclei are found instead.
    """
    from scipy import ndimage as ndi

    contrast = _contrast(rgb, diameter_px)
    foreground = _foreground(contrast, diameter_px)
    if not foreground.any():
        return np.empty((0, 2)), np.empty(0)
    distance = ndi.distance_transform_edt(foreground).astype(np.float32)
    labels, count = _split(foreground, distance, diameter_px)
    inside = np.flatnonzero(labels)
    owner = labels.ravel()[inside] - 1
    area = np.bincount(owner, minlength=count)
    y, x = np.divmod(inside, labels.shape[1])
    sums = np.column_stack([np.bincount(owner, axis, count) for axis in (x, y)])
    # Pixel i covers i to i + 1, so its centre is i + 0.5.
    centre = sums / area[:, None] + 0.5
    radius = np.sqrt(area / np.pi)
    # Edges of dirt and scratches are long and thin: their inscribed circle is much smaller than their area.
    inscribed = np.zeros(count, np.float32)
    np.maximum.at(inscribed, owner, distance.ravel()[inside])
    low, high = (f * diameter_px / 2 for f in _DIAMETER_RANGE)
    keep = (radius >= low) & (radius <= high) & (inscribed >= low / 2)
    return centre[keep], radius[keep]


def _contrast(rgb: npt.NDArray[np.uint8], diameter_px: float) -> FloatImage:
    """Optical density above the local background, as the Euclidean norm over R, G and B, so that any stain counts."""
    from scipy import ndimage as ndi

    height, width = rgb.shape[:2]
    squared = np.zeros((height, width), np.float32)
    window = 2 * max(1, round(_BACKGROUND_WINDOW * diameter_px / BLOCK_PX / 2)) + 1
    padding = ((0, -height % BLOCK_PX), (0, -width % BLOCK_PX))
    for channel in range(3):
        density = optical_density(rgb[..., channel])
        blocks = np.pad(density, padding, mode="edge")
        blocks = blocks.reshape(blocks.shape[0] // BLOCK_PX, BLOCK_PX, -1, BLOCK_PX).mean((1, 3))
        blocks = ndi.gaussian_filter(blocks, 0.6, mode="nearest")
        blocks = ndi.percentile_filter(blocks, 100 - _BACKGROUND_RANK, size=window, mode="nearest")
        blocks = ndi.percentile_filter(blocks, _BACKGROUND_RANK, size=window, mode="nearest")
        background = ndi.zoom(blocks, BLOCK_PX, order=1, grid_mode=True, mode="nearest")[:height, :width]
        squared += np.square(np.maximum(density - background, 0))
    return ndi.gaussian_filter(np.sqrt(squared), 0.02 * diameter_px)


def _foreground(contrast: FloatImage, diameter_px: float) -> Mask:
    from scipy import ndimage as ndi
    from skimage.morphology import remove_small_holes

    sigma = diameter_px / 2
    stained = contrast > _MIN_CONTRAST
    if not stained.any():
        return stained
    weight = ndi.gaussian_filter(stained.astype(np.float32), sigma, truncate=2)
    local = ndi.gaussian_filter(contrast * stained, sigma, truncate=2) / np.maximum(weight, 1e-3)
    solid = contrast > np.maximum(_MIN_CONTRAST, _CONTRAST_FRACTION * local)
    solid = remove_small_holes(solid, max_size=int(_HOLE_AREA * np.pi * diameter_px**2 / 4), connectivity=1)
    max_radius = _DIAMETER_RANGE[1] * diameter_px / 2
    if _may_contain_disc(solid, max_radius):
        deep = ndi.distance_transform_edt(solid) > max_radius
        if deep.any():
            sheet = ndi.distance_transform_edt(~deep) <= max_radius
            solid &= ~sheet | (contrast > _NUCLEUS_FACTOR * local)
    return ndi.binary_opening(solid)


def _may_contain_disc(mask: Mask, radius: float) -> bool:
    """False only if no disc of this radius (px) fits into ``mask``. A hundred times faster than a distance transform.

    A disc at any position covers a square of whole blocks.
    """
    from scipy import ndimage as ndi

    blocks_per_side = int(radius * np.sqrt(2) / BLOCK_PX) - 1
    height, width = (n // BLOCK_PX * BLOCK_PX for n in mask.shape)
    if blocks_per_side < 1 or min(height, width) == 0:
        return True
    blocks = mask[:height, :width].reshape(height // BLOCK_PX, BLOCK_PX, -1, BLOCK_PX).all((1, 3))
    return bool(ndi.minimum_filter(blocks.view(np.uint8), blocks_per_side, mode="nearest").any())


def _split(foreground: Mask, distance: FloatImage, diameter_px: float) -> tuple[npt.NDArray[np.int32], int]:
    """Label the cells by a watershed from the h-maxima of the log distance. The log makes waists relative to cell size."""
    from scipy import ndimage as ndi
    from skimage.segmentation import watershed

    smooth = ndi.gaussian_filter(distance, 0.03 * diameter_px) * foreground
    level = np.round(_LOG_STEPS * np.log(np.maximum(smooth, 0.5) / 0.5)).astype(np.int16)
    drop = round(_WAIST * _LOG_STEPS)
    peaks = level - reconstruct(np.maximum(level - drop, 0), level) >= drop
    markers, count = ndi.label(peaks & foreground, np.ones((3, 3)))
    return watershed(-level, markers, mask=foreground), count


Floats = npt.NDArray[np.float64]

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
        """The chosen cells. ``chosen`` is a slice, indices (n,) or a mask (N,)."""
        return Cells(self.centres[chosen], self.radii[chosen], self.at_edge[chosen])

    @property
    def whole(self) -> Cells:
        """The cells whose crops are completely inside the scanned area. Only these are assessed."""
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


def join_tiles(tiles: Iterable[tuple[Tile, Cells]], diameter_px: float, scale: float) -> Iterator[Cells]:
    """Yield each cell once, in order, as soon as no later tile can affect it.

    Args:
        tiles: row by row, each with its cells in detection pixels, up to `OVERLAP_DIAMETERS` beyond its core.
        diameter_px: expected diameter, in detection pixels.
        scale: level-0 pixels per detection pixel.
    """
    upper: _Detections | None = None
    waiting = Cells.joined([])
    for top, row in groupby(tiles, key=lambda one: one[0].top):
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


def _kept(detections: _Detections, scale: float) -> Cells:
    kept = detections.cells[detections.keep]
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
    # A detection inside the core of its tile takes precedence over one outside. Otherwise the earlier tile does.
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
    """An RGB picture of the slide with a ring around every cell. The slide may have no cells.

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
