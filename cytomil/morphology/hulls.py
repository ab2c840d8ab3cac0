"""Convex hulls of many masks and their neighbourhoods, as one span of columns per row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import cv2
import numpy as np
import numpy.typing as npt

from cytomil.morphology.stacks import Masks

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
