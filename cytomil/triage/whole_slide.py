"""A whole slide as a source of cells: found once, cut out again whenever they are needed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from cytomil.bags.whole_slides import cell_id, cut_cells
from cytomil.errors import TriageModelError
from cytomil.features.cells import CellBlock, EncodedCells, Preparation, feed, piece_sizes
from cytomil.files import replacing, sha256_of_file, sha256_of_json
from cytomil.slides import Cells, Cutting, Handles, Resolutions, Slide, iter_cells, require_enough_cells

_HASHED_BYTES = 1 << 20


@dataclass(frozen=True)
class SlideReading:
    """How the whole slides of a folder are read. ``cutting`` is None where nothing says how to cut them."""

    cutting: Cutting | None
    resolutions: Resolutions
    cache: Path
    workers: int = 0

    def require_cutting(self) -> Cutting:
        """How to cut a slide. Raises `TriageModelError` with the cure where the model does not know."""
        if self.cutting is None:
            raise TriageModelError(
                "the model learnt from cell images of unknown size, so nothing says how large a crop to cut from a whole "
                "slide. Say how many µm wide a training image was with --crop-um 12, or train on slides "
                "(`cytomil make-bags SLIDES --labels labels.csv`)."
            )
        return self.cutting


class WholeSlide:
    """A whole slide, or a plain image of one field. The file is not opened before its content is asked for.

    ``parts`` are all of its files, where it has several side by side.
    Its pictures of label and macro camera are never read: patient names stand there.
    """

    def __init__(self, path: Path, reading: SlideReading, parts: Sequence[Path] = ()) -> None:
        self.path = path
        self._parts = sorted(parts) or [path]
        self.cutting = reading.require_cutting()
        self._reading = reading
        self._cells: Cells | None = None
        self._opened: tuple[float, bool] | None = None  # resolution, and whether the user gave it

    @property
    def mpp(self) -> float:
        """Micrometres per level-0 pixel. Raises `SlideUnreadableError` or `ResolutionError`."""
        return self._resolution()[0]

    @property
    def assumed_mpp(self) -> float | None:
        """The fallback resolution, where this slide needed it."""
        return self.mpp if self.mpp_given and self._reading.resolutions.of(self.path) is None else None

    @property
    def mpp_given(self) -> bool:
        """Whether the user gave the resolution, and not the slide's file."""
        return self._resolution()[1]

    def fingerprint(self) -> str:
        """Names the file by name, size, time and first megabyte, and how it is cut; the fallback resolution is left out."""
        with self.path.open("rb") as file:
            head = hashlib.sha256(file.read(_HASHED_BYTES)).hexdigest()
        files = [(part.name, part.stat().st_size, part.stat().st_mtime_ns) for part in self._files()]
        given = self._reading.resolutions.of(self.path)
        return sha256_of_json({"files": files, "head": head, "cutting": self.cutting.to_json(), "given_mpp": given})

    def content_sha256(self) -> str:
        """See `SlideSource`."""
        files = self._files()
        if len(files) == 1:
            return sha256_of_file(self.path)
        return sha256_of_json([(file.name, sha256_of_file(file)) for file in files])

    def _files(self) -> list[Path]:
        return [self.path, *sorted(self.path.with_suffix("").glob("*"))] if self._is_mrxs() else self._parts

    def open(self) -> Slide:
        """Open the slide at its resolution."""
        return self._reading.resolutions.open(self.path)

    def cells(self) -> Cells:
        """The slide's cells, those at its edge too, found now or in an earlier run.

        Raises `SlideUnreadableError` or `ResolutionError`.
        """
        if self._cells is None:
            self._cells = Cells.joined(self._iter_cells())
        return self._cells

    def blocks(self, preparation: Preparation, batch_size: int, workers: int = 0) -> Iterator[CellBlock]:
        """Cut and decode the cells block by block, as make-bags does, while more are looked for; see `SlideSource`.

        Raises `NoCellsError` at the end where there are too few, and as `cells` does.
        """
        with closing(Handles(self.path, self.mpp)) as handles:
            some = _regrouped((cells.whole for cells in self._iter_cells()), piece_sizes(batch_size))
            yield from feed(
                (partial(self._cut_piece, handles, cells) for cells in some), preparation, batch_size, workers
            )
        require_enough_cells(self.path, self.cells(), self.cutting.finding)

    def _cut_piece(self, handles: Handles, cells: Cells) -> EncodedCells:
        with handles.lend() as slide:
            instances = list(cut_cells(slide, cells, self.cutting))
        coords = np.array([instance.coords for instance in instances], np.int64).reshape(-1, 2)
        return EncodedCells([one.instance_id for one in instances], coords, [one.image for one in instances])

    def _iter_cells(self) -> Iterator[Cells]:
        """The cells as they are found; once they all are, they are kept for later and for later runs."""
        if self._cells is None:
            key = sha256_of_json([self.fingerprint(), self.mpp])
            kept = self._reading.cache / f"{sha256_of_json(self.path.name)[:16]}.cells.npz"
            self._cells = _read_cells(kept, key)
        if self._cells is not None:
            yield self._cells
            return
        parts = []
        finding, crop_um = self.cutting.finding, self.cutting.crop_um
        for part in iter_cells(self.path, finding, self.mpp, self._reading.workers, crop_um=crop_um):
            parts.append(part)
            yield part
        self._cells = Cells.joined(parts)
        _write_cells(kept, key, self._cells)

    def images(self, instance_ids: list[str], min_px: int) -> list[bytes]:
        """The crops of these cells, cut again at ``min_px`` pixels or more for a person to look at."""
        cells = self.cells()
        wanted = set(instance_ids)
        named = ((cell_id(x, y), i) for i, (x, y) in enumerate(cells.centres))
        position = {name: i for name, i in named if name in wanted}
        chosen = [position[name] for name in instance_ids]
        sharp = replace(self.cutting, crop_px=max(self.cutting.crop_px, min_px))
        with self.open() as slide:
            return [instance.image for instance in cut_cells(slide, cells[chosen], sharp)]

    def _is_mrxs(self) -> bool:
        return self.path.suffix.lower() == ".mrxs"

    def _resolution(self) -> tuple[float, bool]:
        if self._opened is None:
            with self.open() as slide:
                self._opened = slide.mpp, slide.mpp_source == "given"
        return self._opened


def _regrouped(parts: Iterable[Cells], sizes: Iterable[int]) -> Iterator[Cells]:
    """The same cells in the same order, in groups of these sizes; the last may be smaller."""
    wanted = iter(sizes)
    size, held = next(wanted), Cells.joined([])
    for part in parts:
        held = Cells.joined([held, part])
        start = 0
        while len(held) - start >= size:
            yield held[start : start + size]
            start += size
            size = next(wanted)
        held = held[start:]
    if len(held):
        yield held


def _write_cells(path: Path, key: str, cells: Cells) -> None:
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, key=np.array(key), seal=np.array(_seal(key, cells)), **vars(cells))


def _seal(key: str, cells: Cells) -> str:
    digest = hashlib.sha256(key.encode())
    for numbers in vars(cells).values():
        digest.update(np.ascontiguousarray(numbers).tobytes())
    return digest.hexdigest()


def _read_cells(path: Path, key: str) -> Cells | None:
    kept = kept_cells(path)
    return kept[1] if kept is not None and kept[0] == key else None


def kept_cells(path: Path) -> tuple[str, Cells] | None:
    """The key and the cells of a slide in a cache of `rank`. None if the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            key, cells = str(kept["key"]), Cells(kept["centres"], kept["radii"], kept["at_edge"])
            return (key, cells) if str(kept["seal"]) == _seal(key, cells) else None
    except Exception:  # a damaged archive fails in many ways; whatever it is, the cells are looked for again
        return None
