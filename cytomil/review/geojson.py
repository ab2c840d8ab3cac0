"""Verdicts that come back from QuPath: a GeoJSON file of `rank` in which cells were given classes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cytomil.errors import ReviewError
from cytomil.review.log import CellVerdict
from cytomil.review.slides import CellPoints

_ALIASES = {"negative": CellVerdict.NORMAL, "positive": CellVerdict.ABNORMAL, "ignore*": CellVerdict.NOT_A_CELL}
_MAX_BYTES = 2 << 30


@dataclass
class Returned:
    """What a file says.

    Args:
        verdicts: cell id → verdict.
        other_classes: names of classes that are no verdicts, with the number of their objects.
        unknown: number of objects with a verdict that are none of the slide's cells.
    """

    verdicts: dict[str, CellVerdict] = field(default_factory=dict)
    other_classes: dict[str, int] = field(default_factory=dict)
    unknown: int = 0


def read_classes(path: Path, cells: CellPoints) -> Returned:
    """Read the classes of cells, each found by the centre of its outline among ``cells``.

    A class is a verdict if it is called as one (abnormal, normal, not a cell, unsure), or positive, negative or Ignore*, in
    any case. Objects without a class and *key cell* are not judged.

    Raises:
        ReviewError: the file is no GeoJSON, or a cell has two verdicts.
    """
    from scipy.spatial import cKDTree

    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ReviewError(f"{path} is larger than any GeoJSON of a slide.")
        document = json.loads(path.read_text(encoding="utf-8"))
        features = document["features"] if isinstance(document, dict) else document
        objects = [(_class_of(feature), _centre(feature)) for feature in features]
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ReviewError(f"{path} is not a GeoJSON file of cells ({error}). Export it from QuPath again.") from None
    found = Returned()
    tree = cKDTree(cells.numbers[:, :2]) if len(cells.ids) else None
    for name, centre in objects:
        verdict = _verdict(name)
        if verdict is None:
            if name and name != "key cell":
                found.other_classes[name] = found.other_classes.get(name, 0) + 1
            continue
        distance, nearest = tree.query(centre) if tree else (np.inf, 0)
        if not distance <= cells.numbers[nearest, 2] / 2:
            found.unknown += 1
            continue
        cell = cells.ids[nearest]
        if found.verdicts.setdefault(cell, verdict) is not verdict:
            raise ReviewError(f"{path}: cell {cell} has two classes, {found.verdicts[cell]} and {verdict}.")
    return found


def _class_of(feature: dict[str, object]) -> str:
    properties = feature["properties"]
    given = properties.get("classification") if isinstance(properties, dict) else None
    return str(given.get("name") or "") if isinstance(given, dict) else ""


def _centre(feature: dict[str, object]) -> np.ndarray:
    geometry = feature.get("nucleusGeometry") or feature["geometry"]
    if not isinstance(geometry, dict):
        raise TypeError("an object has no outline")
    places = geometry["coordinates"]
    if geometry["type"] == "Point":
        return _checked(np.array(places[:2], float))
    if geometry["type"] == "MultiPolygon":
        places = places[0]
    ring = np.array(places[0], float)
    if ring.ndim != 2:
        raise ValueError("an outline is not a list of points")
    # A closed ring repeats its first corner.
    corners = ring[:-1] if len(ring) > 1 and (ring[0] == ring[-1]).all() else ring
    return _checked(corners[:, :2].mean(axis=0))


def _checked(centre: np.ndarray) -> np.ndarray:
    if centre.shape != (2,) or not np.isfinite(centre).all():
        raise ValueError("an object has no place")
    return centre


def _verdict(name: str) -> CellVerdict | None:
    plain = name.strip().lower()
    if plain in _ALIASES:
        return _ALIASES[plain]
    return CellVerdict(plain) if plain in {verdict.value for verdict in CellVerdict} else None
