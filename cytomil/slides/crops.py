"""Cut the cells out of a slide at the model's resolution and size."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cytomil.slides.open import Slide
from cytomil.slides.tiles import Cells


def iter_crops(
    slide: Slide, cells: Cells, *, crop_um: float, crop_px: int
) -> Iterator[tuple[int, int, npt.NDArray[np.uint8]]]:
    """Yield, in the order of ``cells``, one crop per cell with the cell in its middle.

    Each is (x, y, image): level-0 px of the crop's top-left corner (negative at the slide's border), and RGB uint8
    (crop_px, crop_px, 3) that shows ``crop_um`` µm a side whatever the slide's resolution; white outside the slide,
    where no whole cell's crop (`Cells.whole`) reaches.
    One crop is in memory at a time; OpenSlide's cache of decoded tiles serves the neighbours, since the order of
    `Cells` keeps them together. Raises `SlideUnreadableError`.
    """
    half = crop_um / slide.mpp / 2
    for centre_x, centre_y in cells.centres:
        x, y = round(centre_x - half), round(centre_y - half)
        yield x, y, slide.read(x, y, crop_px, crop_px, crop_um / crop_px)
