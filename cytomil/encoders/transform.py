"""Convert an encoded cell image to the input pixels of the encoder, in the same way for training and ranking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import Field

from cytomil.bags.images import open_image
from cytomil.errors import ImageUnreadableError
from cytomil.files import sha256_of_json
from cytomil.progress import Problem


@dataclass(frozen=True)
class CellTransform:
    """Crop the centre to the fraction ``center_crop`` of the side, and resize to ``image_size`` pixels.

    The interpolation is bilinear and antialiased.
    """

    image_size: Annotated[int, Field(ge=1, le=4096)]
    center_crop: Annotated[float, Field(gt=0, le=1)]

    @property
    def sha256(self) -> str:
        """Identifies this transform in feature caches, so that features of another transform are not used."""
        return sha256_of_json(asdict(self) | {"resample": "bilinear-antialias"})

    def __call__(self, image: Image.Image) -> np.ndarray:
        """RGB image → uint8 (image_size, image_size, 3)."""
        side = min(image.size) * self.center_crop
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        return np.asarray(image.resize((self.image_size, self.image_size), Image.Resampling.BILINEAR, box))


def decode_cells(
    encoded: Sequence[bytes], names: Sequence[str], transform: CellTransform
) -> tuple[np.ndarray, list[int], list[Problem]]:
    """Decode and transform a block of cells.

    Returns:
        The pixels of the readable cells, uint8 (M, S, S, 3), their positions in the block, and the unreadable cells.
    """
    (pixels,), kept, problems = decode_cells_for(encoded, names, [transform])
    return pixels, kept, problems


def decode_cells_for(
    encoded: Sequence[bytes], names: Sequence[str], transforms: Sequence[CellTransform]
) -> tuple[list[np.ndarray], list[int], list[Problem]]:
    """Like `decode_cells`, for several transforms. Each cell is decoded once. Pixels are a list, one per transform."""
    images, kept, problems = [], [], []
    for i, (image, name) in enumerate(zip(encoded, names, strict=True)):
        try:
            opened = open_image(image, name)
        except ImageUnreadableError as error:
            problems.append(Problem(name, str(error).removeprefix(f"{name}: ")))
            continue
        images.append([transform(opened) for transform in transforms])
        kept.append(i)
    pixels = [np.zeros((len(images), one.image_size, one.image_size, 3), np.uint8) for one in transforms]
    for at, transformed in enumerate(images):
        for stack, picture in zip(pixels, transformed, strict=True):
            stack[at] = picture
    return pixels, kept, problems
