"""Which micrometres per pixel to believe for each slide of a folder."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cytomil.errors import PixelsNotSquareError, ResolutionError, SettingsError, require_file
from cytomil.slides.open import Slide, open_slide


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
        return self.by_slide.get(path.name, self.by_slide.get(path.stem))

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
    """Read a CSV with the columns slide and mpp. Raises `SettingsError` naming file and line, or `NotFoundError`."""
    require_file(path, "a spreadsheet: columns slide, mpp")
    given: dict[str, float] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if not {"slide", "mpp"} <= set(reader.fieldnames or ()):
                raise SettingsError(f"{path} needs the columns slide and mpp (µm per pixel).")
            for number, line in enumerate(reader, start=2):
                slide = (line["slide"] or "").strip()
                if slide in given:
                    raise SettingsError(f"{path}, line {number}: slide '{slide}' is listed twice. Leave one line.")
                given[slide] = parse_mpp(line["mpp"], f"{path}, line {number}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise SettingsError(f"{path} is not a CSV file in UTF-8 ({error}).") from None
    return given


def parse_mpp(text: str | None, where: str) -> float:
    """A table's µm per pixel as a number. Raises `SettingsError` naming ``where``; plausible or not is seen on opening."""
    try:
        return float((text or "").strip())
    except ValueError:
        raise SettingsError(f"{where}: '{text}' is not a number of µm per pixel, such as 0.25.") from None
