"""Find the cells of a whole slide, tile by tile, with bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt

from cytomil.errors import NoCellsError, SettingsError
from cytomil.slides.detect import BLOCK_PX, detect, has_foreground, reach_px
from cytomil.slides.open import Slide, open_slide

Floats = npt.NDArray[np.float64]

_PX_PER_DIAMETER = 35  # finer finds no more cells on thin smears, coarser loses those that touch
_STRIP_PX = 1024  # level-0 px; cells sorted strip by strip lie close to each other in the file
_SAME_CELL = 0.75  # of the larger radius: two finds of different tiles this close are one cell cut by a seam


@dataclass(frozen=True)
class CellFinding:
    """How cells are looked for. Stored with a triage model, so that training and ranking cut cells alike."""

    diameter_um: float = 7.0
    """Expected cell diameter in µm. Cells from a quarter to three times as wide are found."""
    tile_px: int = 1280
    """Side of a tile in detection pixels (a 35th of the diameter each). A worker needs some 150 bytes per pixel."""
    min_cells: int = 10
    """Number of cells below which a slide counts as not assessed."""

    def __post_init__(self) -> None:
        if not 1.0 <= self.diameter_um <= 200.0:
            raise SettingsError(f"diameter_um is {self.diameter_um}; give a cell's diameter between 1 and 200 µm.")
        if not 64 <= self.tile_px <= 8192:
            raise SettingsError(f"tile_px is {self.tile_px}; give 64 to 8192 px.")
        if self.min_cells < 1:
            raise SettingsError(f"min_cells is {self.min_cells}; give 1 or more.")


@dataclass(frozen=True)
class Cells:
    """The cells of one slide, in a fixed order (by strips of 1,024 level-0 px from the top, within one by x then y).

    ``centres``: float64 (N, 2), level-0 px, (x, y). ``radii``: float64 (N,), level-0 px, of the disc of equal area.
    """

    centres: Floats
    radii: Floats

    def __len__(self) -> int:
        return len(self.radii)


@dataclass(frozen=True)
class _Tile:
    """A tile's core in detection pixels, right and bottom exclusive."""

    left: int
    top: int
    right: int
    bottom: int


def find_cells(
    path: Path,
    finding: CellFinding,
    mpp: float | None = None,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Cells:
    """Find the cells of the slide at ``path``. An empty slide gives no cells, not an error.

    ``mpp``: as in `open_slide`. ``workers``: threads, each with its own file handle; 0 means one per usable core
    (the heavy calls release the interpreter lock). ``progress``: called with tiles done and in all, in this thread.
    The result does not depend on ``workers``. Raises `SlideUnreadableError` and `ResolutionError`.
    """
    with ExitStack() as stack:
        first = stack.enter_context(open_slide(path, mpp))
        detection_mpp = max(finding.diameter_um / _PX_PER_DIAMETER, first.mpp)
        tiles = _tiles(first, finding, detection_mpp)
        threads = min(workers or _usable_cores(), len(tiles))
        slides: SimpleQueue[Slide] = SimpleQueue()
        slides.put(first)
        for _ in range(threads - 1):
            slides.put(stack.enter_context(open_slide(path, mpp)))

        def work(tile: _Tile) -> tuple[Floats, Floats]:
            slide = slides.get()
            try:
                return _cells_of_tile(slide, tile, finding, detection_mpp)
            finally:
                slides.put(slide)

        pool = stack.enter_context(ThreadPoolExecutor(threads))
        # On an error the tiles not yet begun are dropped, instead of being read to the end of the slide.
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        found = []
        for done, cells in enumerate(pool.map(work, tiles), start=1):
            found.append(cells)
            if progress is not None:
                progress(done, len(tiles))
    return _joined(tiles, found, detection_mpp / first.mpp)


def require_enough_cells(path: Path, cells: Cells, finding: CellFinding) -> None:
    """Raise `NoCellsError`, with the reason, if the slide holds fewer than ``finding.min_cells`` cells."""
    if len(cells) < finding.min_cells:
        raise NoCellsError(
            f"{path}: {len(cells) or 'no'} cells found, at least {finding.min_cells} are needed. Look at its QC "
            f"picture: the slide may be blank or out of focus, or its cells not {finding.diameter_um:g} µm wide."
        )


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tiles(slide: Slide, finding: CellFinding, detection_mpp: float) -> list[_Tile]:
    # The background's blocks must lie alike in every tile, or a cell at a seam would differ from one to the next.
    side = -(-finding.tile_px // BLOCK_PX) * BLOCK_PX
    width, height = _detection_size(slide, detection_mpp)
    return [
        _Tile(left, top, min(left + side, width), min(top + side, height))
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]


def _detection_size(slide: Slide, detection_mpp: float) -> tuple[int, int]:
    width, height = (max(1, round(side * slide.mpp / detection_mpp)) for side in slide.dimensions)
    return width, height


def _cells_of_tile(slide: Slide, tile: _Tile, finding: CellFinding, detection_mpp: float) -> tuple[Floats, Floats]:
    """Centres and radii, in detection pixels of the slide, of cells in the tile's core and just around it."""
    scale = detection_mpp / slide.mpp
    diameter_px = finding.diameter_um / detection_mpp
    margin = reach_px(diameter_px)
    width, height = _detection_size(slide, detection_mpp)
    # White beyond the slide's edge would pass for background; the filters repeat the edge instead.
    left, top = max(0, tile.left - margin), max(0, tile.top - margin)
    size = min(width, tile.right + margin) - left, min(height, tile.bottom + margin) - top
    if not _low_power_foreground(slide, (left, top), size, finding, detection_mpp):
        return np.empty((0, 2)), np.empty(0)
    centres, radii = detect(slide.read(left * scale, top * scale, *size, detection_mpp), diameter_px)
    centres += np.array((left, top))
    # A little beyond the core too: the same cell's centre may differ by a pixel between two tiles, and be in neither.
    around = diameter_px / 8
    inside = (centres >= (tile.left - around, tile.top - around)) & (
        centres < (tile.right + around, tile.bottom + around)
    )
    keep = inside.all(1)
    return centres[keep], radii[keep]


def _low_power_foreground(
    slide: Slide, corner: tuple[int, int], size: tuple[int, int], finding: CellFinding, detection_mpp: float
) -> bool:
    low_mpp = max(finding.diameter_um / 3, detection_mpp)
    width, height = (max(1, int(n * detection_mpp / low_mpp)) for n in size)
    scale = detection_mpp / slide.mpp
    return has_foreground(slide.read(corner[0] * scale, corner[1] * scale, width, height, low_mpp))


def _joined(tiles: list[_Tile], found: list[tuple[Floats, Floats]], scale: float) -> Cells:
    """One `Cells` in level-0 px from the tiles' finds, each cell once."""
    centres = np.concatenate([c for c, _ in found])
    radii = np.concatenate([r for _, r in found])
    owner = np.repeat(np.arange(len(tiles)), [len(r) for _, r in found])
    keep = _once(centres, radii, owner, tiles)
    centres, radii = centres[keep] * scale, radii[keep] * scale
    order = np.lexsort((centres[:, 1], centres[:, 0], centres[:, 1] // _STRIP_PX))
    return Cells(centres[order], radii[order])


def _once(centres: Floats, radii: Floats, owner: npt.NDArray[np.int64], tiles: list[_Tile]) -> npt.NDArray[np.bool_]:
    """Mask (N,) that leaves out the second find of a cell that two tiles saw."""
    from scipy.spatial import cKDTree

    keep = np.ones(len(radii), dtype=bool)
    cores = np.array([(t.left, t.top, t.right, t.bottom) for t in tiles], dtype=np.float64)[owner]
    inset = np.minimum(centres - cores[:, :2], cores[:, 2:] - centres).min(1)
    # A find outside its own tile's core gives way to one inside; between equals the earlier tile's stays.
    near = np.flatnonzero(inset < _SAME_CELL * radii.max(initial=0))
    if len(near) < 2:
        return keep
    pairs = near[cKDTree(centres[near]).query_pairs(_SAME_CELL * radii[near].max(), output_type="ndarray")]
    pairs = pairs[owner[pairs[:, 0]] != owner[pairs[:, 1]]]
    apart = np.linalg.norm(centres[pairs[:, 0]] - centres[pairs[:, 1]], axis=1)
    pairs = pairs[apart < _SAME_CELL * radii[pairs].max(1)]
    for pair in pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]:
        if keep[pair].all():
            keep[max(pair, key=lambda i: (inset[i] < 0, i))] = False
    return keep
