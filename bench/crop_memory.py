"""Peak memory of finding and cropping all cells of a slide that is completely covered with cells."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.child import call
from bench.synthetic_slides import write_synthetic
from bench.tables import Measured, Table
from cytomil.slides import CellFinding, find_cells, iter_crops, open_slide


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sides", type=int, nargs="+", default=[10_000, 30_000], help="px")


def measure(options: argparse.Namespace) -> Measured:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for side in options.sides:
            path = Path(folder) / f"{side}.tif"
            write_synthetic(path, side)
            found, child = call(process_slide, str(path))
            rows.append({"side_px": side, **found, "peak_gb": child.together_mb / 1000})
            path.unlink()
    return Measured({"slides": rows}, (Table.of(*map(_shown, rows)),))


def process_slide(path: str) -> dict[str, Any]:
    started = time.perf_counter()
    cells = find_cells(Path(path), CellFinding())
    found_at = time.perf_counter()
    with open_slide(Path(path)) as slide:
        crops = sum(1 for _ in iter_crops(slide, cells, crop_um=25.0, crop_px=96))
    ended = time.perf_counter()
    return {"cells": len(cells), "crops": crops, "find_seconds": found_at - started, "crop_seconds": ended - found_at}


def _shown(row: dict[str, Any]) -> dict[str, str]:
    return {
        "side, px": f"{row['side_px']:,}",
        "cells": f"{row['cells']:,}",
        "crops": f"{row['crops']:,}",
        "seconds to find": f"{row['find_seconds']:.1f}",
        "seconds to crop": f"{row['crop_seconds']:.1f}",
        "peak memory, GB": f"{row['peak_gb']:.2f}",
    }
