"""Masks of many pictures at once, each by itself: opened, grown, filled, parted. OpenCV works on all in one call.

A stack is (N, S, S). OpenCV sees it as one tall picture with empty margins between, so that no picture meets the next.
What lies outside a picture counts as empty. Pixels touch by their edges, not by their corners.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

cv2.setNumThreads(1)  # cells are described in threads already

Masks = npt.NDArray[np.bool_]

MOST_STEPS = 3
"""How often a stack may be grown in one call, so that no picture reaches into the next."""
_MARGIN = 2  # of each picture; two of them lie between neighbours
_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)


def eroded(masks: Masks, steps: int = 1) -> Masks:
    """Each mask without the pixels at its edge, ``steps`` times."""
    return _changed(cv2.MORPH_ERODE, masks, steps)


def grown(masks: Masks, steps: int) -> Masks:
    """Each mask and the pixels that touch it, ``steps`` ≤ `MOST_STEPS` times."""
    return _changed(cv2.MORPH_DILATE, masks, steps)


def opened(masks: Masks, steps: int = 1) -> Masks:
    """Each mask eroded and grown again, so that what is thin is gone."""
    return _changed(cv2.MORPH_OPEN, masks, steps)


def filled(masks: Masks) -> Masks:
    """Each mask with its holes: what no way leads to from outside the picture."""
    tall = _tall(masks)
    _, labels = cv2.connectedComponents(1 - tall, connectivity=4)
    return _pictures(labels != labels[0, 0], masks)  # the margins are one part, with all that lies open to them


@dataclass(frozen=True)
class Parts:
    """The n connected parts of N masks.

    ``picture`` (n,) is the mask that a part lies in, ``area`` (n,) its pixels. ``places`` are all pixels of the masks, in
    the flattened stack; ``part`` is the part of each. ``shape`` is the masks', (N, S, S).
    """

    picture: npt.NDArray[np.intp]
    area: npt.NDArray[np.intp]
    places: npt.NDArray[np.intp]
    part: npt.NDArray[np.int32]
    shape: tuple[int, int, int]

    def keep(self, kept: npt.NDArray[np.bool_]) -> Masks:
        """Masks of the parts that ``kept`` (n,) names."""
        found = np.zeros(self.shape, np.bool_)
        found.ravel()[self.places[kept.take(self.part)]] = True
        return found

    def among(self, masks: Masks) -> npt.NDArray[np.bool_]:
        """Which parts have pixels in ``masks``: (n,)."""
        found = np.zeros(len(self.area), np.bool_)
        found[self.part[masks.ravel().take(self.places)]] = True
        return found

    def middles(self) -> npt.NDArray[np.float64]:
        """Row and column of each part's middle, (n, 2)."""
        side = self.shape[1]
        at = self.places % side**2
        axes = np.indices((side, side), np.float64).reshape(2, -1)
        sums = [np.bincount(self.part, axis.take(at), len(self.area)) for axis in axes]
        return np.column_stack(sums) / self.area[:, None]


def parts(masks: Masks) -> Parts:
    """Part each mask."""
    n, labels = cv2.connectedComponents(_tall(masks), connectivity=4)
    places = np.flatnonzero(masks)
    part = _pictures(labels, masks).ravel().take(places) - 1
    picture = np.zeros(n - 1, np.intp)
    picture[part] = places // masks[0].size
    count, side, _ = masks.shape
    return Parts(picture, np.bincount(part, minlength=n - 1), places, part, (count, side, side))


def depths(masks: Masks) -> npt.NDArray[np.float32]:
    """How far each pixel of a mask lies from the nearest one of its picture that is not of the mask, in pixels."""
    found = np.zeros(masks.shape, np.float32)
    for mask, depth, rows, columns in zip(masks.view(np.uint8), found, _boxes(masks, 2), _boxes(masks, 1), strict=True):
        depth[rows, columns] = cv2.distanceTransform(mask[rows, columns], cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # The square of a distance between pixels is whole. OpenCV is off by 1e-6, not always the same way.
    return np.sqrt(np.rint(np.square(found)))


def _boxes(masks: Masks, axis: int) -> list[slice]:
    """Where each mask lies along the other axis, and one pixel more, which is what bounds it."""
    there = np.any(masks, axis=axis)
    side = there.shape[1]
    first, stop = there.argmax(axis=1), side - there[:, ::-1].argmax(axis=1)
    return [slice(max(0, a - 1), min(side, b + 1)) for a, b in zip(first.tolist(), stop.tolist(), strict=True)]


def _changed(operation: int, masks: Masks, steps: int) -> Masks:
    tall = _tall(masks)
    changed = cv2.morphologyEx(tall, operation, _CROSS, iterations=steps, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return _pictures(changed.view(np.bool_), masks)


def _tall(masks: Masks) -> npt.NDArray[np.uint8]:
    """All masks in one picture, below each other."""
    n, side, _ = masks.shape
    tall = np.zeros((n, side + 2 * _MARGIN, side + 2 * _MARGIN), np.uint8)
    tall[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN] = masks
    return tall.reshape(-1, side + 2 * _MARGIN)


def _pictures(tall: np.ndarray, like: Masks) -> np.ndarray:
    """What `_tall` put together, apart again."""
    n, side, _ = like.shape
    shaped = tall.reshape(n, side + 2 * _MARGIN, side + 2 * _MARGIN)
    return np.ascontiguousarray(shaped[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN])
