"""Every cell of a whole slide with its score, for other programs: GeoJSON for QuPath, CSV for a spreadsheet."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from cytomil.files import replacing
from cytomil.slides import Cells
from cytomil.spreadsheet import ENCODING

_CORNERS = 8
_KEY_CELL = {"name": "key cell", "color": [220, 0, 0]}


def write_geojson(path: Path, slide: str, cells: Cells, scores: np.ndarray, top: Sequence[int]) -> None:
    """Write the cells as QuPath shows them: octagons around them, in px from the corner of the slide's picture.

    Every cell is a detection with its score as measurement. The cells of ``top``, indices with the highest first, are
    annotations too, named "1", "2" and so on, as on the report. ``slide`` is the slide's name.
    """
    angles = np.pi * (2 * np.arange(_CORNERS) + 1) / _CORNERS
    # Wide enough that the octagon's sides, not its corners, touch the cell's disc.
    octagon = np.stack([np.cos(angles), np.sin(angles)], axis=1) / math.cos(math.pi / _CORNERS)

    def feature(i: int, object_type: str, more: dict[str, object]) -> str:
        ring = np.round(cells.centres[i] + cells.radii[i] * octagon, 1).tolist()
        geometry = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
        properties = {"objectType": object_type, "measurements": {"score": _rounded(scores[i])}, **more}
        return json.dumps({"type": "Feature", "geometry": geometry, "properties": properties})

    key_cells = (
        feature(i, "annotation", {"name": str(rank), "classification": _KEY_CELL})
        for rank, i in enumerate(top, start=1)
    )
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(f'{{"type": "FeatureCollection", "slide": {json.dumps(slide)}, "features": [')
        for i, line in enumerate(chain(key_cells, (feature(i, "detection", {}) for i in range(len(cells))))):
            file.write(("," if i else "") + "\n" + line)
        file.write("\n]}\n")


def write_cells_csv(path: Path, names: list[str], cells: Cells, scores: np.ndarray) -> None:
    """Write instance_id, x and y of the cell's centre, in px from the corner of the slide's picture, and score."""
    with replacing(path) as partial, partial.open("w", encoding=ENCODING, newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("instance_id", "x", "y", "score"))
        for name, (x, y), score in zip(names, cells.centres, scores, strict=True):
            writer.writerow((name, f"{x:.1f}", f"{y:.1f}", _rounded(score)))


def _rounded(score: float) -> float:
    return float(f"{score:.4g}")
