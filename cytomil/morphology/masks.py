"""Masks of nucleus and cell, with morphological operations and convex hulls of many masks at once.

OpenCV gets a stack of masks, (N, S, S), as one tall picture. Empty margins keep the masks independent. Pixels outside a
mask count as empty. Pixels are four-connected.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import cv2
import numpy as np
import numpy.typing as npt

cv2.setNumThreads(1)  # callers already describe cells in several threads

Masks = npt.NDArray[np.bool_]

MAX_STEPS = 3
"""Max number of dilation steps per call. With more, masks would grow into their neighbours."""
_PADDING = 2  # pixels around each mask, so neighbours have twice this distance
_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)


def eroded(masks: Masks, steps: int = 1) -> Masks:
    """Erode each mask ``steps`` times."""
    return _transformed(cv2.MORPH_ERODE, masks, steps)


def dilated(masks: Masks, steps: int) -> Masks:
    """Dilate each mask ``steps`` ≤ `MAX_STEPS` times."""
    return _transformed(cv2.MORPH_DILATE, masks, steps)


def opened(masks: Masks, steps: int = 1) -> Masks:
    """Erode and dilate each mask ``steps`` times, which removes thin structures."""
    return _transformed(cv2.MORPH_OPEN, masks, steps)


def filled(masks: Masks) -> Masks:
    """Fill the holes of each mask, which are background that is not connected to the border of the picture."""
    tall = _to_tall(masks)
    _, labels = cv2.connectedComponents(1 - tall, connectivity=4)
    return _from_tall(labels != labels[0, 0], masks)  # the margins are one part with all background connected to them


@dataclass(frozen=True)
class Parts:
    """The n connected parts of N masks.

    Args:
        picture: (n,), the index of the mask of each part.
        area: (n,), the number of pixels of each part.
        places: the indices of all pixels of the masks in the flattened stack.
        part: the part of each of these pixels.
        shape: (N, S, S).
    """

    picture: npt.NDArray[np.intp]
    area: npt.NDArray[np.intp]
    places: npt.NDArray[np.intp]
    part: npt.NDArray[np.int32]
    shape: tuple[int, int, int]

    def keep(self, kept: npt.NDArray[np.bool_]) -> Masks:
        """Masks of the parts for which ``kept`` (n,) is True."""
        found = np.zeros(self.shape, np.bool_)
        found.ravel()[self.places[kept.take(self.part)]] = True
        return found

    def touches(self, masks: Masks) -> npt.NDArray[np.bool_]:
        """Whether each part has pixels in ``masks``, (n,)."""
        found = np.zeros(len(self.area), np.bool_)
        found[self.part[masks.ravel().take(self.places)]] = True
        return found

    def centroids(self) -> npt.NDArray[np.float64]:
        """Row and column of each part's centroid, (n, 2)."""
        side = self.shape[1]
        at = self.places % side**2
        axes = np.indices((side, side), np.float64).reshape(2, -1)
        sums = [np.bincount(self.part, axis.take(at), len(self.area)) for axis in axes]
        return np.column_stack(sums) / self.area[:, None]


def parts(masks: Masks) -> Parts:
    """The connected parts of the masks."""
    n, labels = cv2.connectedComponents(_to_tall(masks), connectivity=4)
    places = np.flatnonzero(masks)
    part = _from_tall(labels, masks).ravel().take(places) - 1
    picture = np.zeros(n - 1, np.intp)
    picture[part] = places // masks[0].size
    count, side, _ = masks.shape
    return Parts(picture, np.bincount(part, minlength=n - 1), places, part, (count, side, side))


def depths(masks: Masks) -> npt.NDArray[np.float32]:
    """Distance of each pixel of a mask from the nearest pixel of the picture outside the mask, float32 (N, S, S), pixels."""
    found = np.zeros(masks.shape, np.float32)
    for mask, depth, rows, columns in zip(masks.view(np.uint8), found, _boxes(masks, 2), _boxes(masks, 1), strict=True):
        depth[rows, columns] = cv2.distanceTransform(mask[rows, columns], cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # Squared distances between pixels are integers. OpenCV's error of 1e-6 is not reproducible, so it is rounded away.
    return np.sqrt(np.rint(np.square(found)))


def _boxes(masks: Masks, axis: int) -> list[slice]:
    """The extent of each mask along the other axis, with one more pixel on each side, which bounds the mask."""
    occupied = np.any(masks, axis=axis)
    side = occupied.shape[1]
    first, stop = occupied.argmax(axis=1), side - occupied[:, ::-1].argmax(axis=1)
    return [slice(max(0, a - 1), min(side, b + 1)) for a, b in zip(first.tolist(), stop.tolist(), strict=True)]


def _transformed(operation: int, masks: Masks, steps: int) -> Masks:
    tall = _to_tall(masks)
    found = cv2.morphologyEx(tall, operation, _CROSS, iterations=steps, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return _from_tall(found.view(np.bool_), masks)


def _to_tall(masks: Masks) -> npt.NDArray[np.uint8]:
    """All masks below each other in one picture, with margins."""
    n, side, _ = masks.shape
    tall = np.zeros((n, side + 2 * _PADDING, side + 2 * _PADDING), np.uint8)
    tall[:, _PADDING:-_PADDING, _PADDING:-_PADDING] = masks
    return tall.reshape(-1, side + 2 * _PADDING)


def _from_tall(tall: np.ndarray, like: Masks) -> np.ndarray:
    """The inverse of `_to_tall`."""
    n, side, _ = like.shape
    shaped = tall.reshape(n, side + 2 * _PADDING, side + 2 * _PADDING)
    return np.ascontiguousarray(shaped[:, _PADDING:-_PADDING, _PADDING:-_PADDING])


_ROUNDING = 1e-6  # pixels; a pixel on the edge of a hull belongs to the hull


@dataclass(frozen=True)
class Spans:
    """Masks whose rows have no gaps: from column ``first`` to ``last`` inclusive, float32 (N, S) each.

    In an empty row ``first`` is infinity and ``last`` is minus infinity.
    """

    first: npt.NDArray[np.float32]
    last: npt.NDArray[np.float32]

    @property
    def masks(self) -> Masks:
        """Bool (N, S, S)."""
        column = np.arange(self.first.shape[1], dtype=np.float32)
        return (column >= self.first[..., None]) & (column <= self.last[..., None])

    def dilated(self, distance: float) -> Spans:
        """All pixels closer than ``distance`` pixels to a pixel of the spans. These must be convex hulls."""
        max_rows = int(np.ceil(distance)) - 1
        widths = (np.ceil(np.sqrt(distance**2 - np.arange(-max_rows, max_rows + 1) ** 2)) - 1).tolist()
        padding = ((0, 0), (max_rows, max_rows))
        first = np.pad(self.first, padding, constant_values=np.inf)
        last = np.pad(self.last, padding, constant_values=-np.inf)
        side = self.first.shape[1]
        return Spans(
            reduce(np.minimum, (first[:, row : row + side] - width for row, width in enumerate(widths))),
            reduce(np.maximum, (last[:, row : row + side] + width for row, width in enumerate(widths))),
        )


def hulls(masks: Masks) -> Spans:
    """Convex hull of each mask. No mask may be empty.

    Each pixel counts as a diamond that extends half a pixel to each side. A pixel belongs to the hull if its centre does.
    The hull of a line with a width of one pixel is therefore the line itself.
    """
    rows: npt.NDArray[np.bool_] = np.any(masks, axis=2)
    picture, row = np.nonzero(rows)
    pixels = masks[picture, row]
    first, last = pixels.argmax(axis=1), masks.shape[2] - 1 - pixels[:, ::-1].argmax(axis=1)
    # Corners of the row's first and last pixel, in half pixels.
    across = 2 * np.column_stack([first, last, first, last, first, last]) + (0, 0, -1, 1, 0, 0)
    down = 2 * row[:, None] + (-1, -1, 0, 0, 1, 1)
    corners = np.stack([across, down], axis=2).reshape(-1, 2).astype(np.int32)
    stops = len(across[0]) * np.cumsum(rows.sum(axis=1))[:-1]
    outlines = [cv2.convexHull(points).reshape(-1, 2) for points in np.split(corners, stops)]
    return _between(outlines, rows)


def _between(outlines: list[np.ndarray], rows: npt.NDArray[np.bool_]) -> Spans:
    """The spans within outlines, which are corners in half pixels in the order of OpenCV: left edges point upwards."""
    count = np.array([len(outline) for outline in outlines])
    begin = np.cumsum(count) - count
    following = np.arange(1, count.sum() + 1)
    following[begin + count - 1] = begin
    start = np.concatenate(outlines) / 2
    along, down = (start[following] - start).T
    slope = along / np.where(down == 0, 1, down)
    crossed = np.arange(rows.shape[1]) * slope[:, None] + (start[:, 0] - start[:, 1] * slope)[:, None]
    left, right = np.where(down[:, None] < 0, crossed, -np.inf), np.where(down[:, None] > 0, crossed, np.inf)
    first = np.ceil(np.maximum.reduceat(left, begin) - _ROUNDING)
    last = np.floor(np.minimum.reduceat(right, begin) + _ROUNDING)
    # Rows between the first and the last row of a mask, including empty ones.
    within = np.logical_or.accumulate(rows, axis=1) & np.logical_or.accumulate(rows[:, ::-1], axis=1)[:, ::-1]
    ends = np.where(within, first, np.inf), np.where(within, last, -np.inf)
    return Spans(*(one.astype(np.float32) for one in ends))


_BINS = 256
_SLIGHTLY_MORE = 1 + 1e-6
_MIN_CONTRAST = 1e-4  # optical density; smaller differences count as equal, because float32 has no bins between them


def thresholds(values: npt.NDArray[np.float32], among: Masks) -> npt.NDArray[np.float32]:
    """Otsu's threshold (1979) of the pixels ``among`` of each picture, both (N, S, S) → (N,).

    Values must not be negative. The threshold is the centre of the last light bin, of 256 bins between min and max. If
    all values are nearly equal, it is the max, so that no pixel is above it. It is 0 if there are no pixels.
    """
    counts = np.empty((len(values), _BINS), np.float64)
    ends = np.empty((len(values), 2), np.float64)
    for i, (picture, mask) in enumerate(zip(values, among.view(np.uint8), strict=True)):
        low, high, *_ = cv2.minMaxLoc(picture, mask)
        end = max(
            high * _SLIGHTLY_MORE, low + _MIN_CONTRAST
        )  # the range excludes its end, and the last bin must hold max
        counts[i] = cv2.calcHist([picture], [0], mask, [_BINS], [low, end]).ravel()
        ends[i] = low, high
    light = np.cumsum(counts, axis=1)
    summed = np.cumsum(counts * np.arange(_BINS), axis=1)
    # The difference of the two means, times the denominator in the next line.
    difference = summed[:, -1:] * light - summed * light[:, -1:]
    last = (difference**2 / np.maximum(light * (light[:, -1:] - light), 1)).argmax(axis=1)
    width = ends[:, 1] - ends[:, 0]
    found = np.where(width < _MIN_CONTRAST, ends[:, 1], ends[:, 0] + (last + 0.5) * width / _BINS)
    return found.astype(np.float32)


MAX_CYTOPLASM = 0.19
"""Max distance of a cell's pixels from the hull of its nucleus, as a fraction of the side. It excludes neighbours."""
_CENTRAL = 0.62  # of half the side; a nucleus whose centroid is farther out belongs to a neighbour
_MIN_NUCLEUS = 0.002  # of the picture's area; smaller parts are dirt
_MIN_OTHER = 0.005  # of the picture's area; the same for nuclei of neighbours
_FALLBACK_RADIUS = 0.4  # of half the side; radius of the disc that is used if no nucleus is found

Pictures = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Nuclei:
    """The central nucleus, its convex hull, and all other nuclei, bool (N, S, S). Only ``others`` may be empty.

    If there is no nucleus near the centre, ``own`` is a disc around it. The disc is cut out of the others.
    """

    own: Masks
    hull: Spans
    others: Masks


@dataclass(frozen=True)
class CellMasks:
    """Nucleus, its convex hull, and the whole cell including the nucleus: bool (N, S, S), none empty."""

    nucleus: Masks
    hull: Masks
    cell: Masks


def find_nuclei(red: Pictures) -> Nuclei:
    """Find nuclei in the smoothed optical density in red, (N, S ≥ 16, S).

    The blue to violet stain of nuclei absorbs red light. Otsu's threshold separates it from everything else.
    """
    dark, own = _dark_and_own(red)
    large = dark.area >= _MIN_OTHER * red.shape[1] ** 2
    return Nuclei(own, hulls(own), dark.keep(large) & ~own)


def find_masks(red: Pictures, green: Pictures) -> CellMasks:
    """Masks of the central cell, from the smoothed optical density in red and green, (N, S ≥ 16, S).

    The nucleus is that of `find_nuclei`. Around it, Otsu's threshold in green separates the cell from the background,
    because all stains absorb green light.
    """
    _, nucleus = _dark_and_own(red)
    hull = hulls(nucleus)
    stained = green > thresholds(green, ~nucleus)[:, None, None]
    stained &= hull.dilated(MAX_CYTOPLASM * red.shape[1]).masks
    cell = parts(opened(filled(stained | nucleus), steps=2) | nucleus)
    return CellMasks(nucleus, hull.masks, cell.keep(cell.touches(nucleus)))


def _dark_and_own(red: Pictures) -> tuple[Parts, Masks]:
    """All dark parts, and the mask of the large central ones with holes filled; a disc if there are none."""
    side = red.shape[1]
    radius = _distance_from_centre(side)
    among = np.broadcast_to(radius < 1, red.shape)
    dark = parts(opened(red > thresholds(red, among)[:, None, None]))
    offset = np.hypot(*(dark.centroids() - (side - 1) / 2).T)
    central = (dark.area >= _MIN_NUCLEUS * side**2) & (offset < _CENTRAL * side / 2)
    own = filled(dark.keep(central))
    own[~own.any(axis=(1, 2))] = radius < _FALLBACK_RADIUS
    return dark, own


def _distance_from_centre(side: int) -> npt.NDArray[np.float64]:
    """Distance of each pixel from the centre, (side, side), in units of half the side."""
    axis = (np.arange(side) - (side - 1) / 2) / (side / 2)
    return np.hypot(axis[:, None], axis)


_BACKGROUND = 0.1  # of the pixels; the lightest in green, because all stains absorb green
_MARGIN = 2 / 64  # of the side; leaves empty background around the edge of the cell

Images = npt.NDArray[np.float32]


def isolate(density: Images, smooth: Images) -> Images:
    """Optical density of the central cell above the background, 0 outside the cell's region, (N, S ≥ 16, S, 3).

    The background is the median of the lightest tenth of the pixels. The region ends at the usual width of a cytoplasm,
    and where another nucleus is closer. No threshold separates cytoplasm from background, because a threshold would find
    red cells instead of pale cytoplasm.

    Args:
        density: optical density, (N, S, S, 3).
        smooth: the same, smoothed.
    """
    red, green = (np.ascontiguousarray(smooth[..., i]) for i in range(2))
    own: Images = np.zeros_like(density)
    regions = _regions(red).view(np.uint8)
    for picture, background, mask, result in zip(density, _backgrounds(density, green), regions, own, strict=True):
        over = cv2.subtract(picture, background)
        cv2.copyTo(cv2.threshold(over, 0, 0, cv2.THRESH_TOZERO)[1], mask, dst=result)
    return own


def _backgrounds(density: Images, green: Images) -> npt.NDArray[np.float64]:
    """The median of the lightest pixels of each picture in each colour, followed by a 0 that OpenCV needs: (N, 4)."""
    values = green.reshape(len(green), -1)
    nth = int(_BACKGROUND * (values.shape[1] - 1))
    light = values <= np.partition(values, nth, axis=1)[:, nth, None]
    found = np.zeros((len(density), 4))
    for background, picture, at in zip(found, density.reshape(*values.shape, 3), light, strict=True):
        ordered = np.sort(picture.take(np.flatnonzero(at), axis=0).T, axis=1)
        n = ordered.shape[1]
        background[:3] = (ordered[:, (n - 1) // 2] + ordered[:, n // 2]) / 2
    return found


def _regions(red: Images) -> Masks:
    nuclei = find_nuclei(red)
    near = nuclei.hull.dilated((MAX_CYTOPLASM + _MARGIN) * red.shape[1]).masks
    crowded = nuclei.others.any(axis=(1, 2))
    near[crowded] &= depths(~nuclei.own[crowded]) < depths(~nuclei.others[crowded])
    return near | nuclei.own
