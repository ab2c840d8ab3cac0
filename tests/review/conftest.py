"""A ranked folder with one slide, one folder of cells and one slide that was not assessed, and a server for it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from cytomil.bags.whole_slides import cell_id
from cytomil.files import sha256_of_file, write_json
from cytomil.review.server import HOST
from cytomil.slides import Cells
from cytomil.triage.whole_slide import write_geojson
from cytomil.triage.worklist import Call, KeyInstance, SlideResult, Worklist
from cytomil.triage.write import to_document
from tests.serving import serving

TOKEN = "right-token"
MPP = 0.5
N_CELLS, N_KEYS = 40, 12
SECRET = (250, 3, 3)
"""The colour of the label image, which no page may show."""


def write_slide(path: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(90, 160, (600, 800, 3), np.uint8)
    with tifffile.TiffWriter(path) as tiff:
        tags: dict[str, Any] = {"resolution": (1e4 / MPP, 1e4 / MPP), "resolutionunit": "CENTIMETER"}
        tiff.write(image, tile=(128, 128), photometric="rgb", **tags)
        tiff.write(np.ascontiguousarray(image[::2, ::2]), tile=(128, 128), photometric="rgb", subfiletype=1)
        label = np.full((128, 128, 3), SECRET, np.uint8)
        tiff.write(label, tile=(128, 128), photometric="rgb", subfiletype=1, description="label")


def write_triage(root: Path, make_slide_folders: Any) -> Path:
    """Write ``root/slides`` and ``root/triage``."""
    make_slide_folders(root / "slides", ["cells"], cells=N_KEYS)
    slide, out = root / "slides" / "smear.tif", root / "triage"
    out.mkdir()
    write_slide(slide)
    rng = np.random.default_rng(1)
    centres = np.column_stack([rng.uniform(40, 760, N_CELLS), rng.uniform(40, 560, N_CELLS)])
    cells = Cells(centres, np.full(N_CELLS, 12.0), np.zeros(N_CELLS, bool))
    scores = np.linspace(9, 0.1, N_CELLS)
    write_geojson(out / "geojson" / "smear.tif.geojson", "smear.tif", cells, scores, range(N_KEYS))
    keys = tuple(
        KeyInstance(cell_id(x, y), float(score), b"", x, y, x * MPP, y * MPP, "rare")
        for (x, y), score in zip(centres[:N_KEYS], scores, strict=False)
    )
    of_folder = tuple(KeyInstance(f"cell-{i}.png", 5.0 - i / 10, b"") for i in range(N_KEYS))
    slides = (
        SlideResult("gone.svs", str(root / "slides" / "gone.svs"), Call.NOT_ASSESSED, reason="is empty (0 bytes)."),
        SlideResult(
            "smear.tif",
            str(slide),
            Call.REVIEW_FIRST,
            0.9,
            sha256=sha256_of_file(slide),
            n_instances=N_CELLS,
            mpp=MPP,
            key_instances=keys,
            files={"geojson": "geojson/smear.tif.geojson"},
        ),
        SlideResult(
            "cells", str(root / "slides" / "cells"), Call.REVIEW, 0.4, n_instances=N_KEYS, key_instances=of_folder
        ),
    )
    card = {"model_sha256": "f" * 64, "score_meaning": "× as suspicious", "synthetic": False, "collapsed": False}
    worklist = Worklist(str(root / "slides"), "2026-01-01T00:00:00+00:00", slides, 0.6, 0.3, card)
    write_json(out / "triage.json", to_document(worklist))
    return out


@pytest.fixture
def triage(tmp_path: Path, make_slide_folders: Any) -> Path:
    return write_triage(tmp_path, make_slide_folders)


@dataclass
class Answer:
    status: int
    body: bytes
    headers: dict[str, str]

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Client:
    """Asks the server. ``cookie`` and ``host`` are the right ones unless a test changes them."""

    port: int
    cookie: str = ""
    host: str = ""
    more: dict[str, str] = field(default_factory=dict)

    def ask(self, path: str, body: Any = None, method: str = "", **headers: str) -> Answer:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=20)
        given = {"Host": self.host or f"{HOST}:{self.port}", **self.more, **headers}
        if self.cookie:
            given["Cookie"] = f"cytomil-review-{self.port}={self.cookie}"
        data = None
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            given.setdefault("Content-Type", "application/json")
        connection.putrequest(method or ("POST" if data is not None else "GET"), path, skip_host=True)
        for name, value in given.items():
            connection.putheader(name, value)
        if data is not None:
            connection.putheader("Content-Length", str(len(data)))
        connection.endheaders(data)
        answer = connection.getresponse()
        told = Answer(answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()})
        connection.close()
        return told

    def act(self, reader: str, action: str, slide: str = "smear.tif", **more: Any) -> Answer:
        return self.ask("/api/act", {"reader": reader, "action": action, "slide": slide, **more})


@pytest.fixture
def client(triage: Path) -> Iterator[Client]:
    with serving(triage, TOKEN) as port:
        yield Client(port, TOKEN)
