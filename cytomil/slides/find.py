"""Find the cells of a whole slide, tile by tile, with bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from cytomil.errors import NoCellsError, SettingsError
from cytomil.slides.detect import BLOCK_PX, detect, has_foreground, margin_px
from cytomil.slides.open import Handles, Slide
from cytomil.slides.resolution import is_scanned, reaches_unscanned, with_background
from cytomil.slides.tiles import OVERLAP_DIAMETERS, Cells, Tile, join_tiles, tiles_of
from cytomil.threads import ahead

T = TypeVar("T")

_PX_PER_DIAMETER = 35  # a finer resolution finds no more cells on thin smears, a coarser one merges touching cells


@dataclass(frozen=True)
class CellFinding:
    """How cells are found. A triage model stores it, so that training and ranking cut cells in the same way.

    Raises:
        SettingsError: a value is out of range.
    """

    diameter_um: float = 7.0
    """Expected cell diameter in µm. Cells from a quarter of it to three times it are found."""
    tile_px: int = 1280
    """Side of a tile in detection pixels, which are a 35th of the diameter. A worker needs about 150 bytes per pixel."""
    min_cells: int = 10
    """A slide with fewer cells is not assessed."""

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
    """Yield the cells of the slide at ``path``, in the order of `Cells`, while others are still searched for.

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

        # Only positions are kept, so work ahead needs no limit.
        with closing(ahead((partial(search, tile) for tile in tiles), workers, len(tiles))) as found:
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
    # Slightly beyond the core too: the centre of a cell may differ by a pixel between two tiles, and be in neither core.
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
