"""Every cell of a whole slide with its score, for other programs: GeoJSON for QuPath, CSV for a spreadsheet."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Collection
from pathlib import Path

import numpy as np

from cytomil.files import replacing
from cytomil.slides import Cells
from cytomil.spreadsheet import ENCODING

_CORNERS = 8
_KEY_CELL = {"name": "key cell", "color": [220, 0, 0]}


def write_geojson(path: Path, slide: str, cells: Cells, scores: np.ndarray, top: Collection[int]) -> None:
    """Write the cells as QuPath detections: octagons around them, in level-0 px, with the score as measurement.

    The cells of ``top``, by index, carry the classification "key cell". ``slide`` is the slide's name.
    """
    angles = np.pi * (2 * np.arange(_CORNERS) + 1) / _CORNERS
    # Wide enough that the octagon's sides, not its corners, touch the cell's disc.
    octagon = np.stack([np.cos(angles), np.sin(angles)], axis=1) / math.cos(math.pi / _CORNERS)
    chosen = set(top)
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(f'{{"type": "FeatureCollection", "slide": {json.dumps(slide)}, "features": [')
        for i, (centre, radius, score) in enumerate(zip(cells.centres, cells.radii, scores, strict=True)):
            ring = np.round(centre + radius * octagon, 1).tolist()
            properties: dict[str, object] = {"objectType": "detection", "measurements": {"score": _rounded(score)}}
            if i in chosen:
                properties["classification"] = _KEY_CELL
            feature = {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
                "properties": properties,
            }
            file.write(("," if i else "") + "\n" + json.dumps(feature))
        file.write("\n]}\n")


def write_cells_csv(path: Path, names: list[str], cells: Cells, scores: np.ndarray) -> None:
    """Write instance_id, x and y of the cell's centre in level-0 px, and score; one line a cell."""
    with replacing(path) as partial, partial.open("w", encoding=ENCODING, newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("instance_id", "x", "y", "score"))
        for name, (x, y), score in zip(names, cells.centres, scores, strict=True):
            writer.writerow((name, f"{x:.1f}", f"{y:.1f}", _rounded(score)))


def _rounded(score: float) -> float:
    return float(f"{score:.4g}")
