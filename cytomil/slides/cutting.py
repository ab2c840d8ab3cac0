"""How cells are cut out of slides, told once and carried from make-bags to rank, so that both do it alike."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cytomil.errors import SettingsError
from cytomil.slides.find import CellFinding


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
