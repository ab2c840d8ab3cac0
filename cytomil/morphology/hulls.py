"""Convex hulls of many masks, and all that lies near them, as one span of columns in each row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import cv2
import numpy as np
import numpy.typing as npt

from cytomil.morphology.stacks import Masks

_ROUNDING = 1e-6  # pixels: a pixel on a hull's edge is of the hull


@dataclass(frozen=True)
class Spans:
    """Masks whose rows are whole: from column ``first`` to ``last``, float32 (N, S) each, the last one included.

    In an empty row ``first`` is infinite, ``last`` is minus infinity.
    """

    first: npt.NDArray[np.float32]
    last: npt.NDArray[np.float32]

    @property
    def masks(self) -> Masks:
        """Bool (N, S, S)."""
        column = np.arange(self.first.shape[1], dtype=np.float32)
        return (column >= self.first[..., None]) & (column <= self.last[..., None])

    def near(self, reach: float) -> Spans:
        """All within ``reach`` pixels of a pixel of the spans, less than that; these must be a convex hull's."""
        most = int(np.ceil(reach)) - 1
        beside = (np.ceil(np.sqrt(reach**2 - np.arange(-most, most + 1) ** 2)) - 1).tolist()
        above_and_below = ((0, 0), (most, most))
        first = np.pad(self.first, above_and_below, constant_values=np.inf)
        last = np.pad(self.last, above_and_below, constant_values=-np.inf)
        side = self.first.shape[1]
        return Spans(
            reduce(np.minimum, (first[:, row : row + side] - far for row, far in enumerate(beside))),
            reduce(np.maximum, (last[:, row : row + side] + far for row, far in enumerate(beside))),
        )


def hulls(masks: Masks) -> Spans:
    """Convex hull of each mask, none of them empty: of its pixels as diamonds that reach half a pixel to each side.

    A pixel is of the hull if its middle is. So a line one pixel thick has a hull, which is the line.
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
    outlines = [cv2.convexHull(of_one).reshape(-1, 2) for of_one in np.split(corners, stops)]
    return _between(outlines, rows)


def _between(outlines: list[np.ndarray], rows: npt.NDArray[np.bool_]) -> Spans:
    """The spans that hulls leave between their edges: corners in half pixels, as OpenCV orders them, left edges upwards."""
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
    # From the first row that is there to the last, without gaps.
    within = np.logical_or.accumulate(rows, axis=1) & np.logical_or.accumulate(rows[:, ::-1], axis=1)[:, ::-1]
    ends = np.where(within, first, np.inf), np.where(within, last, -np.inf)
    return Spans(*(one.astype(np.float32) for one in ends))
