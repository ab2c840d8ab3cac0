"""Morphological operations on stacks of masks, (N, S, S), with one OpenCV call per stack.

OpenCV gets the stack as one tall picture. Empty margins keep the masks independent. Pixels outside a mask count as empty.
Pixels are four-connected.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

cv2.setNumThreads(1)  # callers already describe cells in several threads

Masks = npt.NDArray[np.bool_]

MAX_STEPS = 3
"""Max number of dilation steps per call. With more, masks would grow into their neighbours."""
_MARGIN = 2  # pixels around each mask, so neighbours have twice this distance
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
    tall = np.zeros((n, side + 2 * _MARGIN, side + 2 * _MARGIN), np.uint8)
    tall[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN] = masks
    return tall.reshape(-1, side + 2 * _MARGIN)


def _from_tall(tall: np.ndarray, like: Masks) -> np.ndarray:
    """The inverse of `_to_tall`."""
    n, side, _ = like.shape
    shaped = tall.reshape(n, side + 2 * _MARGIN, side + 2 * _MARGIN)
    return np.ascontiguousarray(shaped[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN])
