"""What only a whole slide has: places of its cells, and with them pictures and files for other programs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from cytomil.bags.whole_slides import cell_id
from cytomil.files import replacing, safe_name, write_bytes
from cytomil.slides import Cells, qc_thumbnail
from cytomil.tables import write_csv
from cytomil.text import ENCODING
from cytomil.triage.pictures import FILE_PX, REPORT_PX, context, heatmap, jpeg, marked_thumbnail, png
from cytomil.triage.whole_slide import WholeSlide
from cytomil.triage.worklist import SlideResult

_CORNERS = 8
_KEY_CELL = {"name": "key cell", "color": [220, 0, 0]}


def write_geojson(path: Path, slide: str, cells: Cells, scores: np.ndarray, top: Sequence[int]) -> None:
    """Write the cells as QuPath shows them: octagons around them, in px from the corner of the slide's picture.

    Every cell is a detection: its id is its name, its score a measurement. The cells of ``top`` (indices, the highest
    score first) are annotations too, named "1", "2" and so on, as on the report. ``slide`` is the slide's name.
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
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(f'{{"type": "FeatureCollection", "slide": {json.dumps(slide)}, "features": [')
        for i, line in enumerate(chain(key_cells, detections)):
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
    """Add to an assessed slide where its key cells lie and its pictures; write its heat map, GeoJSON and CSV into ``out``.

    ``names`` (N,) and ``scores`` (N,) are of the assessed cells.
    """
    found = source.cells().whole
    cells = found[_rows_of(names, found)]
    keys = {cell.instance_id for cell in result.key_instances}
    row_of = {name: i for i, name in enumerate(names) if name in keys}
    top = [row_of[cell.instance_id] for cell in result.key_instances]
    name = safe_name(result.slide)
    files = {"heatmap": f"heatmaps/{name}.png", "geojson": f"geojson/{name}.geojson"}
    write_geojson(out / files["geojson"], result.slide, cells, scores, top)
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
