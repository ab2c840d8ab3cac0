"""Classified objects in a GeoJSON file, as QuPath exports them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cytomil.errors import TableError

_MAX_BYTES = 2 << 30
_VERDICTS = {name: name for name in ("abnormal", "normal", "not a cell", "unsure")}
_VERDICTS |= {"positive": "abnormal", "negative": "normal", "ignore*": "not a cell"}


@dataclass(frozen=True)
class ClassifiedObject:
    """An object: the name of its class, "" if none, and the centre (x, y) of its outline in the file's unit."""

    name: str
    centre: np.ndarray

    @property
    def verdict(self) -> str | None:
        """The verdict that the class names (abnormal, normal, not a cell or unsure); None for other classes.

        Positive, negative and Ignore* count as the first three. Case does not matter.
        """
        return _VERDICTS.get(self.name.strip().lower())


def read_objects(path: Path) -> list[ClassifiedObject]:
    """Read all objects of a file. The position of a cell with a nucleus is that of the nucleus.

    Raises:
        TableError: the file is not GeoJSON, or an object has no position.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise TableError(f"{path} is larger than any GeoJSON of a slide.")
        document = json.loads(path.read_text(encoding="utf-8"))
        features = document["features"] if isinstance(document, dict) else document
        return [ClassifiedObject(_class_of(feature), _centre(feature)) for feature in features]
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise TableError(f"{path} is not a GeoJSON file of cells ({error}). Export it from QuPath again.") from None


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
