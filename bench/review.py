"""The review page: frames per second while panning 100,000 cells, and the time per tile.

The slide is a real blood smear with cells at random positions. Frames are counted in headless Chromium. Every tile of every
zoom level is requested once, four at a time.
"""

from __future__ import annotations

import argparse
import http.client
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.data import SLIDES
from bench.tables import Measured, SkippedError, Table
from cytomil.files import sha256_of_file, write_json
from cytomil.review.server import HOST
from cytomil.review.slides import TILE_PX
from cytomil.slides import Cells, open_slide
from cytomil.triage.whole_slide import write_geojson
from cytomil.triage.worklist import Call, SlideResult, Worklist
from cytomil.triage.write import to_document

_TOKEN = "bench"
_PARALLEL_REQUESTS = 4
_PAN = """
const done = arguments[arguments.length - 1], seconds = arguments[0];
const gaps = [], begun = performance.now();
let before = begun;
function frame(now) {
  gaps.push(now - before); before = now;
  viewer.viewport.panBy(new OpenSeadragon.Point(0.002 * Math.sin(now / 300), 0.002 * Math.cos(now / 300)), true);
  viewer.forceRedraw();
  if (now - begun < 1000 * seconds) requestAnimationFrame(frame); else done(gaps);
}
requestAnimationFrame(frame);
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--slide", type=Path, default=SLIDES / "smear-normal-1.tif", help="a whole slide")
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds of panning")


def measure(options: argparse.Namespace) -> Measured:
    if not options.slide.is_file():
        raise SkippedError(f"{options.slide} does not exist. Give a whole slide with --slide.")
    from tests.serving import serving

    with tempfile.TemporaryDirectory() as folder:
        write_triage(Path(folder), options.slide, options.cells)
        with serving(Path(folder), _TOKEN) as port:
            tiles = tile_seconds(port, options.slide)
            frames = frames_per_second(port, options.seconds)
    results = {"cells": options.cells, "tile_seconds": tiles, "zoomed_out": frames[0], "zoomed_in": frames[1]}
    rows = [
        {"what": f"tile, median of {len(tiles)}", "figure": f"{1000 * median(tiles):.0f} ms"},
        {"what": "tile, slowest", "figure": f"{1000 * max(tiles):.0f} ms"},
        *(
            {"what": f"panning {where}, {options.cells:,} cells", "figure": f"{one['fps']:.0f} frames/s"}
            for where, one in zip(("the whole slide", "zoomed in"), frames, strict=True)
        ),
    ]
    return Measured(results, (Table.of(*rows),))


def write_triage(folder: Path, slide: Path, n: int) -> None:
    with open_slide(slide) as opened:
        (width, height), mpp = opened.dimensions, opened.mpp
    rng = np.random.default_rng(0)
    centres = rng.uniform((20, 20), (width - 20, height - 20), (n, 2))
    scores = rng.lognormal(0, 1, n)
    cells = Cells(centres, np.full(n, 8.0), np.zeros(n, bool))
    write_geojson(folder / "geojson" / "slide.geojson", slide.name, cells, scores, [])
    result = SlideResult(
        slide.name,
        str(slide.resolve()),
        Call.REVIEW,
        0.5,
        sha256=sha256_of_file(slide),
        n_instances=n,
        mpp=mpp,
        files={"geojson": "geojson/slide.geojson"},
    )
    card = {"model_sha256": "", "score_meaning": ""}
    write_json(folder / "triage.json", to_document(Worklist(str(slide.parent), "", (result,), 0.6, 0.3, card)))


def tile_seconds(port: int, slide: Path) -> list[float]:
    """Seconds per tile. Each is requested once, together with three others."""
    pyramid = json.loads(_get(port, "/api/slides/0"))["pyramid"]
    places = []
    for level in range(pyramid["max_level"] + 1):
        scale = 2 ** (pyramid["max_level"] - level) * TILE_PX
        columns, rows = (-(-pyramid[side] // scale) for side in ("width", "height"))
        places += [(level, column, row) for column in range(columns) for row in range(rows)]

    def one(place: tuple[int, int, int]) -> float:
        begun = time.perf_counter()
        _get(port, "/api/slides/0/tiles/{}/{}/{}".format(*place))
        return time.perf_counter() - begun

    with ThreadPoolExecutor(_PARALLEL_REQUESTS) as pool:
        return list(pool.map(one, places))


def _get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection(HOST, port)
    connection.request("GET", path, headers={"Cookie": f"cytomil-review-{port}={_TOKEN}"})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    if answer.status != 200:
        raise SystemExit(f"{path} got {answer.status}")
    return body


def frames_per_second(port: int, seconds: float) -> list[dict[str, Any]]:
    """Frame rates while panning the whole slide, and then a quarter of its width."""
    from tests.browser import start_chromium

    with tempfile.TemporaryDirectory() as profile:
        browser = start_chromium(Path(profile))
        try:
            browser.set_window_size(1280, 900)
            browser.set_script_timeout(60 + seconds)
            browser.get(f"http://{HOST}:{port}/?token={_TOKEN}")
            browser.execute_script("sessionStorage.setItem('reader', 'AB')")
            browser.get(f"http://{HOST}:{port}/")
            while not browser.execute_script(
                "return state.cells !== null && viewer && viewer.world.getItemCount() > 0"
            ):
                time.sleep(0.2)
            found = []
            for zoom in (1.0, 4.0):
                browser.execute_script("viewer.viewport.zoomTo(arguments[0], null, true)", zoom)
                time.sleep(2)
                gaps = browser.execute_async_script(_PAN, seconds)
                found.append({"fps": len(gaps) / (sum(gaps) / 1000), "slowest_frame_ms": max(gaps)})
            return found
        finally:
            browser.quit()
