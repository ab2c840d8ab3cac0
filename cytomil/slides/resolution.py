"""Which micrometres per pixel to believe for each slide of a folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from cytomil.errors import PixelsNotSquareError, ResolutionError, TableError
from cytomil.slides.open import SLIDE_SUFFIXES, Slide, open_slide
from cytomil.tables import Column, composed, read_table

SLIDE = Column(
    "slide",
    ("slide_id", "slideid", "slide_name"),
    ("file", "filename", "file_name", "image", "name", "path", "id"),
    required=True,
)
MPP = Column(
    "mpp",
    ("um_per_px", "um_per_pixel", "microns_per_pixel"),
    ("mpp_x", "mpp_y", "resolution", "pixel_size", "pixelsize"),
)


@dataclass(frozen=True)
class Resolutions:
    """What the user gave, in µm per level-0 pixel.

    ``by_slide``: a slide's file name, with or without its suffix, to its resolution. It wins over the file's own value.
    ``fallback``: for slides whose file gives none, or an implausible one. It never overrules a plausible one.
    """

    by_slide: Mapping[str, float] = field(default_factory=dict)
    fallback: float | None = None

    def of(self, path: Path) -> float | None:
        """What was given for this one slide."""
        name, stem = composed(path.name), composed(path.stem)
        return self.by_slide.get(name, self.by_slide.get(stem))

    def open(self, path: Path) -> Slide:
        """Open a slide by the first of: its own row, the file's plausible value, the fallback.

        Raises `SlideUnreadableError` where it cannot be opened, `ResolutionError` with the cure where none is plausible.
        """
        row = self.of(path)
        try:
            return open_slide(path, row)
        except PixelsNotSquareError:
            raise
        except ResolutionError:
            if row is not None or self.fallback is None:
                raise
        return open_slide(path, self.fallback)


def read_resolutions(path: Path) -> dict[str, float]:
    """Read a table with the columns slide and mpp. Raises `TableError` naming file and line, or `NotFoundError`."""
    given: dict[str, float] = {}
    for row in read_table(path, (SLIDE, replace(MPP, required=True)), "a spreadsheet: columns slide, mpp"):
        slide = row["slide"]
        if not slide:
            raise TableError(f"{row.where}: the slide's name is empty.")
        if slide in given:
            raise TableError(f"{row.where}: slide '{slide}' is listed twice. Leave one line.")
        given[slide] = parse_mpp(row["mpp"], row.where)
    for slide, mpp in given.items():
        stem = Path(slide).stem
        if Path(slide).suffix.lower() in SLIDE_SUFFIXES and given.get(stem, mpp) != mpp:
            raise TableError(f"{path} gives {slide} {mpp:g} µm/px and {stem} {given[stem]:g}. Leave one line.")
    return given


def parse_mpp(text: str, where: str) -> float:
    """A table's µm per pixel as a number, with point or comma.

    Raises `TableError` naming ``where`` if it is none above 0; plausible or not is seen on opening.
    """
    try:
        mpp = float(text.replace(",", ".", 1))
    except ValueError:
        mpp = math.nan
    if not (mpp > 0 and math.isfinite(mpp)):
        raise TableError(f"{where}: '{text}' is not a number of µm per pixel, such as 0.25.")
    return mpp
