"""Find the cells of a whole slide, tile by tile with bounded memory, and cut them out at the model's resolution."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cytomil.errors import NoCellsError, SettingsError
from cytomil.slides.open import Handles, Slide
from cytomil.slides.resolution import is_scanned, reaches_unscanned, with_background
from cytomil.slides.tiles import (
    BLOCK_PX,
    OVERLAP_DIAMETERS,
    Cells,
    Tile,
    detect,
    has_foreground,
    join_tiles,
    margin_px,
    tiles_of,
)
from cytomil.threads import prefetch

T = TypeVar("T")

_PX_PER_DIAMETER = 35  # a higher value finds no more cells on thin smears, and a lower one merges touching cells


@dataclass(frozen=True)
class CellFinding:
    """How cells are found. A triage model stores it, so that training and ranking cut cells in the same way.

    Raises:
        SettingsError: a value is out of range.
    """

    diameter_um: float = 7.0
    """Expected cell diameter in µm. Cells of 0.25 to 3 times this diameter are found."""
    tile_px: int = 1280
    """Side of a tile in detection pixels, which are a 35th of the diameter. A worker needs about 150 bytes per pixel."""
    min_cells: int = 10
    """Min number of cells. A slide with fewer is not assessed."""

    def __post_init__(self) -> None:
        if not 1.0 <= self.diameter_um <= 200.0:
            raise SettingsError(f"diameter_um is {self.diameter_um}; give a cell's diameter between 1 and 200 µm.")
        if not 64 <= self.tile_px <= 8192:
            raise SettingsError(f"tile_px is {self.tile_px}; give 64 to 8192 px.")
        if self.min_cells < 1:
            raise SettingsError(f"min_cells is {self.min_cells}; give 1 or more.")


def find_cells(
    path: Path,
    finding: CellFinding,
    mpp: float | None = None,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
    crop_um: float = 0.0,
) -> Cells:
    """Find the cells of the slide at ``path``, see `iter_cells`. An empty slide has no cells, which is not an error."""
    return Cells.joined(iter_cells(path, finding, mpp, workers, progress, crop_um))


def iter_cells(
    path: Path,
    finding: CellFinding,
    mpp: float | None = None,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
    crop_um: float = 0.0,
) -> Iterator[Cells]:
    """Yield the cells of the slide at ``path``, in the order of `Cells`, while the search continues.

    Args:
        path: the slide.
        finding: how cells are found.
        mpp: see `open_slide`.
        workers: number of threads, each with its own file handle; 0: one per usable core. The result does not depend on it.
            Threads suffice, because the expensive calls release the interpreter lock.
        progress: called in this thread with the number of finished tiles and of all tiles.
        crop_um: side of a crop in µm. Cells whose crop would extend beyond the slide or into an unscanned gap are marked
            `Cells.at_edge`.

    Raises:
        SlideUnreadableError: the slide cannot be read.
        ResolutionError: see `open_slide`.
    """
    with closing(Handles(path, mpp)) as handles:
        with handles.lend() as slide:
            own_mpp = slide.mpp
            detection_mpp = max(finding.diameter_um / _PX_PER_DIAMETER, own_mpp)
            # The blocks of the background must be aligned in all tiles. Otherwise a cell at a seam would differ between them.
            side = -(-finding.tile_px // BLOCK_PX) * BLOCK_PX
            tiles = tiles_of(*_detection_size(slide, detection_mpp), side)

        def search(tile: Tile) -> tuple[Tile, Cells]:
            with handles.lend() as slide:
                return tile, _cells_of_tile(slide, tile, finding, detection_mpp, crop_um)

        # Only positions are kept, so prefetching needs no limit.
        with closing(prefetch((partial(search, tile) for tile in tiles), workers, len(tiles))) as found:
            reported = _report_progress(found, len(tiles), progress)
            yield from join_tiles(reported, finding.diameter_um / detection_mpp, detection_mpp / own_mpp)


def _report_progress(found: Iterable[T], total: int, progress: Callable[[int, int], None] | None) -> Iterator[T]:
    for done, one in enumerate(found, start=1):
        if progress is not None:
            progress(done, total)
        yield one


def require_enough_cells(path: Path, cells: Cells, finding: CellFinding) -> None:
    """Raise `NoCellsError`, with the reason, if fewer than ``finding.min_cells`` of the cells are whole."""
    n_whole, n_at_edge = len(cells.whole), int(cells.at_edge.sum())
    if n_whole < finding.min_cells:
        left_out = f" ({n_at_edge} more at the edge of the scanned area are left out)" if n_at_edge else ""
        raise NoCellsError(
            f"{path}: {n_whole or 'no'} cells found{left_out}, at least {finding.min_cells} are needed. Look at its QC "
            f"picture: the slide may be blank or out of focus, or its cells are not {finding.diameter_um:g} µm wide."
        )


def _detection_size(slide: Slide, detection_mpp: float) -> tuple[int, int]:
    width, height = (max(1, round(side * slide.mpp / detection_mpp)) for side in slide.dimensions)
    return width, height


def _cells_of_tile(slide: Slide, tile: Tile, finding: CellFinding, detection_mpp: float, crop_um: float) -> Cells:
    """Cells in the tile's core and slightly beyond it, in detection pixels of the slide."""
    scale = detection_mpp / slide.mpp
    diameter_px = finding.diameter_um / detection_mpp
    half_crop = crop_um / detection_mpp / 2
    beyond_core = OVERLAP_DIAMETERS * diameter_px
    margin = max(margin_px(diameter_px), -(-math.ceil(half_crop + beyond_core) // BLOCK_PX) * BLOCK_PX)
    width, height = _detection_size(slide, detection_mpp)
    # White pixels beyond the slide would count as background. The filters repeat the edge instead.
    left, top = max(0, tile.left - margin), max(0, tile.top - margin)
    size = min(width, tile.right + margin) - left, min(height, tile.bottom + margin) - top
    if not _low_power_foreground(slide, (left, top), size, finding, detection_mpp):
        return Cells.joined([])
    rgb, alpha = slide.read_with_alpha(left * scale, top * scale, *size, detection_mpp)
    scanned = is_scanned(rgb, alpha, diameter_px)
    centres, radii = detect(with_background(rgb, scanned), diameter_px)
    at_edge = reaches_unscanned(centres, half_crop, scanned)
    centres += np.array((left, top))
    # Cells slightly beyond the core are kept too. The centre of a cell may differ by a pixel between two tiles, and would
    # then be in neither core.
    inside = (centres >= (tile.left - beyond_core, tile.top - beyond_core)) & (
        centres < (tile.right + beyond_core, tile.bottom + beyond_core)
    )
    if crop_um:
        at_edge |= ((centres < half_crop) | (centres > np.array((width, height)) - half_crop)).any(1)
    keep = inside[:, 0] & inside[:, 1]
    return Cells(centres, radii, at_edge)[keep]


def _low_power_foreground(
    slide: Slide, corner: tuple[int, int], size: tuple[int, int], finding: CellFinding, detection_mpp: float
) -> bool:
    low_mpp = max(finding.diameter_um / 3, detection_mpp)
    width, height = (max(1, int(n * detection_mpp / low_mpp)) for n in size)
    scale = detection_mpp / slide.mpp
    return has_foreground(slide.read(corner[0] * scale, corner[1] * scale, width, height, low_mpp))


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

    A crop shows ``crop_um`` µm per side at any resolution of the slide. It is white outside the slide. Crops of
    `Cells.whole` are inside. One crop is in memory at a time. In the order of `Cells`, successive cells are neighbours, so
    OpenSlide's cache usually holds their decoded tiles.

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
