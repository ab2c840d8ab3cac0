"""Cut the cells out of a slide at the model's resolution and size."""

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
    """Cells of ``diameter_um`` µm are looked for, and each is cut out as a square ``crop_um`` µm and ``crop_px`` pixels wide.

    A slide with fewer than ``min_cells`` cells is not used. Raises `SettingsError` for a value out of range.
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
        """Micrometres per pixel of a crop, whatever the slide's."""
        return self.crop_um / self.crop_px

    @property
    def finding(self) -> CellFinding:
        """How the cells are looked for."""
        return CellFinding(diameter_um=self.diameter_um, min_cells=self.min_cells)

    def to_json(self) -> dict[str, Any]:
        """As it stands in bag files, encoder.json and triage.json."""
        return asdict(self)


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
