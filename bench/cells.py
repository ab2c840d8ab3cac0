"""How many of the labelled cells the finder finds, how fast, and in how much memory.

    python -m bench.cells [DATA_DIR] [--json]     recall per slide; DATA_DIR holds slides/smear-*.tif and cells.csv
    python -m bench.cells --memory [--json]       peak memory over slides of 10,000 and 30,000 px a side

A labelled cell counts as found if a find lies within half a cell's diameter of it, one find to one label (the
assignment with the least total distance). A duplicate is a find that no label took, within half a diameter both of a
labelled cell and of the find that took it. Half a diameter is 20 level-0 px: the median diameter of the cells in these
pictures is 40 px. Finds shifted by an arbitrary step would still hit 37 % of the labels, so `recall_within_quarter`
(10 px) is told too; the labels themselves lie up to 10 px off. Not every cell is labelled: there is no precision here.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cytomil.slides import CellFinding, find_cells, iter_crops, open_slide

HALF_DIAMETER_PX = 20.0
# The tag of one slide is wrong on purpose, so the resolution is given for that one.
GIVEN_MPP = {"smear-abnormal-4": 0.1}
Floats = npt.NDArray[np.float64]


def labelled_centres(cells_csv: Path) -> dict[str, Floats]:
    """Level-0 centres (N, 2) of the labelled cells, by slide."""
    centres: dict[str, list[tuple[float, float]]] = {}
    with cells_csv.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            centres.setdefault(row["slide"], []).append((float(row["x"]), float(row["y"])))
    return {slide: np.array(points) for slide, points in centres.items()}


def match(labels: Floats, found: Floats, reach_px: float = HALF_DIAMETER_PX) -> tuple[int, int]:
    """(labels found, duplicate finds) as defined above."""
    from scipy.optimize import linear_sum_assignment

    if not len(found):
        return 0, 0
    distance = np.linalg.norm(labels[:, None] - found[None], axis=-1)
    rows, columns = linear_sum_assignment(np.where(distance <= reach_px, distance, 1e6))
    close = distance[rows, columns] <= reach_px
    taken = dict(zip(rows[close].tolist(), columns[close].tolist(), strict=True))
    spare = np.setdiff1d(np.arange(len(found)), list(taken.values()))
    duplicates = set()
    for label, find in taken.items():
        near = spare[distance[label, spare] <= reach_px]
        duplicates |= set(near[np.linalg.norm(found[near] - found[find], axis=1) <= reach_px].tolist())
    return len(taken), len(duplicates)


def recall_table(data: Path) -> list[dict[str, object]]:
    """One row per slide, and an overall one."""
    rows: list[dict[str, object]] = []
    total = np.zeros(6)
    for name, labels in labelled_centres(data / "slides" / "cells.csv").items():
        start = time.perf_counter()
        found = find_cells(data / "slides" / f"{name}.tif", CellFinding(), mpp=GIVEN_MPP.get(name)).centres
        seconds = time.perf_counter() - start
        hits, duplicates = match(labels, found)
        strict, _ = match(labels, found, HALF_DIAMETER_PX / 2)
        numbers = np.array((len(labels), hits, strict, duplicates, len(found), seconds))
        total += numbers
        rows.append(_row(name, numbers))
    return [*rows, _row("all", total)]


def _row(name: str, numbers: npt.ArrayLike) -> dict[str, object]:
    labels, hits, strict, duplicates, found, seconds = np.asarray(numbers, dtype=np.float64).tolist()
    return {
        "slide": name,
        "labelled": int(labels),
        "recall": round(hits / labels, 4),
        "recall_within_quarter": round(strict / labels, 4),
        "duplicates_percent": round(100 * duplicates / max(hits, 1), 2),
        "found": int(found),
        "seconds": round(seconds, 2),
    }


def write_synthetic(path: Path, side: int, tile: int = 512, filled: float = 1.0) -> None:
    """A pyramidal deflated TIFF of ``side`` px at 0.25 µm/px, full of 8 µm discs, written tile by tile.

    ``filled``: share of its height, from the top, that holds discs; the rest is background.
    """
    import tifffile
    from PIL import Image, ImageDraw

    def tiles(level: int) -> Iterator[npt.NDArray[np.uint8]]:
        step = 2**level
        picture = Image.new("RGB", (tile, tile), (236, 232, 238))
        draw = ImageDraw.Draw(picture)
        # The same tile over and over: memory and time depend on how much there is to find, not on its variety.
        for x in range(32 // step, tile, max(4, 64 // step)):
            for y in range(32 // step, tile, max(4, 64 // step)):
                draw.ellipse((x - 16 / step, y - 16 / step, x + 16 / step, y + 16 / step), fill=(150, 90, 160))
        drawn, blank = np.asarray(picture), np.full((tile, tile, 3), (236, 232, 238), np.uint8)
        rows = -(-(side // step) // tile)
        for row in range(rows):
            for _ in range(rows):
                yield drawn if row < math.ceil(filled * rows) else blank

    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level in range(6):
            shape = (side // 2**level, side // 2**level, 3)
            tiff.write(
                tiles(level),
                shape=shape,
                dtype=np.uint8,
                tile=(tile, tile),
                photometric="rgb",
                compression="adobe_deflate",
                subfiletype=1 if level else 0,
                resolution=(40_000, 40_000),
                resolutionunit="CENTIMETER",
            )


def process_slide(path: Path) -> dict[str, object]:
    """Find and crop every cell of ``path`` and tell the peak memory of this process and its children."""
    import psutil

    peak, stop = [0], threading.Event()

    def watch() -> None:
        me = psutil.Process(os.getpid())
        while not stop.wait(0.05):
            peak[0] = max(peak[0], sum(p.memory_info().rss for p in (me, *me.children(recursive=True))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    cells = find_cells(path, CellFinding())
    found_at = time.perf_counter()
    with open_slide(path) as slide:
        crops = sum(1 for _ in iter_crops(slide, cells, crop_um=25.0, crop_px=96))
    ended = time.perf_counter()
    stop.set()
    watcher.join()
    return {
        "side_px": slide.dimensions[0],
        "found": len(cells),
        "crops": crops,
        "find_seconds": round(found_at - start, 1),
        "crop_seconds": round(ended - found_at, 1),
        "peak_rss_gb": round(peak[0] / 1e9, 3),
    }


def memory_table(sides: list[int]) -> list[dict[str, object]]:
    """One row per side, each in a process of its own: a peak would otherwise outlive the slide that made it."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for side in sides:
            path = Path(folder) / f"{side}.tif"
            write_synthetic(path, side)
            command = [sys.executable, "-m", "bench.cells", "--one", str(path)]
            rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            path.unlink()
    return rows


def _markdown(rows: list[dict[str, object]]) -> str:
    lines = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0])]
    lines += [" | ".join(str(value) for value in row.values()) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a Markdown table")
    parser.add_argument("--memory", action="store_true", help="measure memory over synthetic slides")
    parser.add_argument("--sides", type=int, nargs="+", default=[10_000, 30_000], help="px, with --memory")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(process_slide(options.one)))
        return
    if not options.memory and not (options.data / "slides" / "cells.csv").is_file():
        sys.exit(f"{options.data}: holds no slides/cells.csv. Name the folder with the real slides.")
    rows = memory_table(options.sides) if options.memory else recall_table(options.data)
    print(json.dumps(rows, indent=2) if options.json else _markdown(rows))


if __name__ == "__main__":
    main()
