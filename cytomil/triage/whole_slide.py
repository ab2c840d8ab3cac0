"""A whole slide as a source of cells, with the places of its cells and the files made from them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from cytomil.bags.whole_slides import cell_id, cut_cells
from cytomil.errors import TriageModelError
from cytomil.features.cells import CellBlock, EncodedCells, Preparation, feed, piece_sizes
from cytomil.files import replacing, safe_name, sha256_of_file, sha256_of_json, write_bytes
from cytomil.slides import Cells, Cutting, Handles, Resolutions, Slide, iter_cells, qc_thumbnail, require_enough_cells
from cytomil.tables import write_csv
from cytomil.text import ENCODING
from cytomil.triage.pictures import FILE_PX, REPORT_PX, context, heatmap, jpeg, marked_thumbnail, png
from cytomil.triage.worklist import SlideResult

_CORNERS = 8
_KEY_CELL = {"name": "key cell", "color": [220, 0, 0]}
_TO_TEACH = {"name": "to teach the model", "color": [11, 87, 208]}
OWN_CLASSES = frozenset(str(one["name"]) for one in (_KEY_CELL, _TO_TEACH))
"""Classes of objects in GeoJSON files that `rank` assigns. They are not verdicts of readers."""


def write_geojson(
    path: Path, slide: str, cells: Cells, scores: np.ndarray, top: Sequence[int], to_teach: Sequence[int] = ()
) -> None:
    """Write the cells as QuPath shows them: octagons around them, in px from the corner of the slide's picture.

    Every cell is a detection: its id is its name, its score a measurement. The cells of ``top`` (indices, the highest
    score first) are annotations too, named "1", "2" and so on, as on the report. Those ``to_teach`` the model are
    annotations of a class of their own, named "T1", "T2" and so on. ``slide`` is the slide's name.
    """
    angles = np.pi * (2 * np.arange(_CORNERS) + 1) / _CORNERS
    # Wide enough that the octagon's sides, not its corners, touch the cell's disc.
    octagon = np.stack([np.cos(angles), np.sin(angles)], axis=1) / math.cos(math.pi / _CORNERS)

    def feature(i: int, object_type: str, more: dict[str, object]) -> str:
        ring = np.round(cells.centres[i] + cells.radii[i] * octagon, 1).tolist()
        geometry = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
        properties = {"objectType": object_type, "measurements": {"score": _rounded(scores[i])}, **more}
        return json.dumps({"type": "Feature", "geometry": geometry, "properties": properties})

    names = (cell_id(x, y) for x, y in cells.centres)
    detections = (feature(i, "detection", {"name": name}) for i, name in enumerate(names))
    key_cells = (
        feature(i, "annotation", {"name": str(rank), "classification": _KEY_CELL})
        for rank, i in enumerate(top, start=1)
    )
    taught = (
        feature(i, "annotation", {"name": f"T{number}", "classification": _TO_TEACH})
        for number, i in enumerate(to_teach, start=1)
    )
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(f'{{"type": "FeatureCollection", "slide": {json.dumps(slide)}, "features": [')
        for i, line in enumerate(chain(key_cells, taught, detections)):
            file.write(("," if i else "") + "\n" + line)
        file.write("\n]}\n")


def write_cells_csv(path: Path, names: Sequence[str], cells: Cells, scores: np.ndarray) -> None:
    """Write instance_id, x and y of the cell's centre, in px from the corner of the slide's picture, and score."""
    with replacing(path) as partial, partial.open("w", encoding=ENCODING, newline="") as file:
        rows = (
            {"instance_id": name, "x": f"{x:.1f}", "y": f"{y:.1f}", "score": _rounded(score)}
            for name, (x, y), score in zip(names, cells.centres, scores, strict=True)
        )
        write_csv(file, ("instance_id", "x", "y", "score"), rows)


def _rounded(score: float) -> float:
    return float(f"{score:.4g}")


_REPORT_QUALITY, _FILE_QUALITY = 52, 85
_MANY_AT_EDGE = 0.2


def _caution_of_edge(n_at_edge: int, n_found: int) -> list[str]:
    if n_at_edge <= _MANY_AT_EDGE * n_found:
        return []
    return [f"{n_at_edge} of {n_found} cells lie at the edge of the scanned area and were left out: read them yourself"]


def with_places(
    result: SlideResult, source: WholeSlide, names: Sequence[str], scores: np.ndarray, out: Path, cells_csv: bool
) -> SlideResult:
    """Add positions of key cells and pictures to an assessed slide. Write its heat map, GeoJSON and CSV into ``out``.

    ``names`` (N,) and ``scores`` (N,) are of the assessed cells.
    """
    found = source.cells().whole
    cells = found[_rows_of(names, found)]
    keys = {one.instance_id for one in result.key_instances} | {one.instance_id for one in result.to_teach}
    row_of = {name: i for i, name in enumerate(names) if name in keys}
    top = [row_of[cell.instance_id] for cell in result.key_instances]
    to_teach = [row_of[cell.instance_id] for cell in result.to_teach]
    name = safe_name(result.slide)
    files = {"heatmap": f"heatmaps/{name}.png", "geojson": f"geojson/{name}.geojson"}
    write_geojson(out / files["geojson"], result.slide, cells, scores, top, to_teach)
    if cells_csv:
        files["cells_csv"] = f"cells/{name}.csv"
        write_cells_csv(out / files["cells_csv"], names, cells, scores)
    with source.open() as slide:
        placed = tuple(
            replace(
                cell,
                x_px=float(x),
                y_px=float(y),
                x_um=float(x) * source.mpp,
                y_um=float(y) * source.mpp,
                context=jpeg(context(slide, np.array((x, y)), source.cutting.crop_um), _REPORT_QUALITY),
            )
            for cell, (x, y) in zip(result.key_instances, cells.centres[top], strict=True)
        )
        thumbnail = jpeg(marked_thumbnail(slide, cells, top), _REPORT_QUALITY)
        write_bytes(out / files["heatmap"], png(heatmap(slide, cells.centres, scores)))
    return with_qc(replace(result, key_instances=placed, thumbnail=thumbnail, files=files), source, out)


def _rows_of(names: Sequence[str], found: Cells) -> list[int]:
    """Where the assessed cells are among those found: the same order, without those that could not be read."""
    rows, wanted = [], iter(names)
    name = next(wanted, None)
    for row, (x, y) in enumerate(found.centres):
        if cell_id(x, y) == name:
            rows.append(row)
            name = next(wanted, None)
    return rows


def with_qc(result: SlideResult, source: WholeSlide, out: Path) -> SlideResult:
    """Add the picture that shows which cells were found, however few; its larger form is written into ``out``."""
    cells = source.cells()
    n_at_edge = int(cells.at_edge.sum())
    with source.open() as slide:
        picture = qc_thumbnail(slide, cells, FILE_PX)
    file = f"qc/{safe_name(result.slide)}.jpg"
    write_bytes(out / file, jpeg(picture, _FILE_QUALITY))
    picture.thumbnail((REPORT_PX, REPORT_PX))
    small = jpeg(picture, _REPORT_QUALITY)
    return replace(
        result,
        n_instances=len(cells.whole),
        n_at_edge=n_at_edge,
        cautions=(*result.cautions, *_caution_of_edge(n_at_edge, len(cells))),
        mpp=source.mpp,
        mpp_given=source.mpp_given,
        qc_picture=small,
        files=result.files | {"qc_picture": file},
    )


_HASHED_BYTES = 1 << 20


@dataclass(frozen=True)
class SlideReading:
    """How the whole slides of a folder are read. ``cutting`` is None if it is not known how to cut them."""

    cutting: Cutting | None
    resolutions: Resolutions
    cache: Path
    workers: int = 0

    def require_cutting(self) -> Cutting:
        """How to cut a slide. Raises `TriageModelError` with the cure if that is unknown."""
        if self.cutting is None:
            raise TriageModelError(
                "the model learnt from cell images of unknown size, so the size of the crops from a whole slide is unknown. "
                "Give the width of a training image in µm, such as --crop-um 12, or train on slides "
                "(`cytomil make-bags SLIDES --labels labels.csv`)."
            )
        return self.cutting


class WholeSlide:
    """A whole slide, or a plain image of one field. The file is not opened before its content is needed.

    ``parts`` are all of its files, if it has several side by side. Its label and macro images are never read, because
    they may show patient names.
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
        """The fallback resolution, if this slide needed it."""
        return self.mpp if self.mpp_given and self._reading.resolutions.of(self.path) is None else None

    @property
    def mpp_given(self) -> bool:
        """Whether the user gave the resolution, and not the slide's file."""
        return self._resolution()[1]

    def fingerprint(self) -> str:
        """Identifies the file by name, size, time, first megabyte and cutting. The fallback resolution is left out."""
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
        """Cut and decode the cells block by block, as make-bags does, while more are found; see `SlideSource`.

        Raises what `cells` raises, and `NoCellsError` at the end if there are too few.
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
        """The cells as they are found. The complete list is kept for later use and for later runs."""
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
    except Exception:  # a damaged archive fails in many ways; in any case, the cells are searched for again
        return None
