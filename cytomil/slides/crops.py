"""Cut out the cells of a slide at the model's resolution and size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cytomil.errors import SettingsError
from cytomil.slides.find import CellFinding
from cytomil.slides.open import Slide
from cytomil.slides.tiles import Cells


@dataclass(frozen=True)
class Cutting:
    """How cells are found and cut out.

    Args:
        crop_um: side of a crop, in µm.
        crop_px: side of a crop, in pixels.
        diameter_um: expected diameter of a cell, in µm.
        min_cells: a slide with fewer cells is not used.

    Raises:
        SettingsError: a value is out of range.
    """

    crop_um: float
    crop_px: int
    diameter_um: float = CellFinding.diameter_um
    min_cells: int = CellFinding.min_cells

    def __post_init__(self) -> None:
        if not 1.0 <= self.crop_um <= 1000.0:
            raise SettingsError(f"crop_um is {self.crop_um}; give a crop's side between 1 and 1000 µm.")
        if not 8 <= self.crop_px <= 1024:
            raise SettingsError(f"crop_px is {self.crop_px}; give a crop's side between 8 and 1024 px.")
        _ = self.finding

    @property
    def mpp(self) -> float:
        """Micrometres per pixel of a crop. It does not depend on the slide."""
        return self.crop_um / self.crop_px

    @property
    def finding(self) -> CellFinding:
        """How cells are found."""
        return CellFinding(diameter_um=self.diameter_um, min_cells=self.min_cells)

    def to_json(self) -> dict[str, Any]:
        """The form stored in bag files, encoder.json and triage.json."""
        return asdict(self)


def iter_crops(
    slide: Slide, cells: Cells, *, crop_um: float, crop_px: int
) -> Iterator[tuple[int, int, npt.NDArray[np.uint8]]]:
    """Yield one crop per cell, centred on the cell, in the order of ``cells``.

    A crop shows ``crop_um`` µm per side at any resolution of the slide. It is white outside the slide, which crops of
    `Cells.whole` do not touch. One crop is in memory at a time. The order of `Cells` keeps neighbours together, so they
    profit from OpenSlide's cache of decoded tiles.

    Yields:
        (x, y, image): level-0 px of the crop's top-left corner, negative beyond the slide's border, and RGB uint8
        (crop_px, crop_px, 3).

    Raises:
        SlideUnreadableError: the slide is damaged.
    """
    half = crop_um / slide.mpp / 2
    for centre_x, centre_y in cells.centres:
        x, y = round(centre_x - half), round(centre_y - half)
        yield x, y, slide.read(x, y, crop_px, crop_px, crop_um / crop_px)
