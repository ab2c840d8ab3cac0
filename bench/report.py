"""Size, writing time and loading time of a long report.

Pictures are noise in the size that rank writes. Loading is measured in headless Chromium, until the page's load event.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.tables import Measured, Table
from bench.timing import Spread
from cytomil.mil.cross_validate import SCORE_BIN_EDGES
from cytomil.triage.report import write_report
from cytomil.triage.worklist import Call, KeyInstance, SlideResult, Worklist


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--slides", type=int, default=500)
    parser.add_argument("--cells", type=int, default=24, help="per slide")


def measure(options: argparse.Namespace) -> Measured:
    worklist = make_worklist(options.slides, options.cells)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for form, split in (("one file", False), ("separate images", True)):
            page = Path(folder) / form.replace(" ", "-") / "report.html"
            page.parent.mkdir()
            started = time.perf_counter()
            write_report(worklist, page, split_images=split)
            written = time.perf_counter() - started
            size = sum(file.stat().st_size for file in page.parent.rglob("*") if file.is_file()) / 1e6
            loaded = load_seconds(page)
            rows.append({"form": form, "size_mb": size, "seconds_to_write": written, "seconds_to_load": loaded})
    return Measured({"forms": rows}, (Table.of(*map(_shown, rows)),))


def _shown(row: dict[str, Any]) -> dict[str, str]:
    loaded = row["seconds_to_load"]
    return {
        "form": row["form"],
        "size, MB": f"{row['size_mb']:.1f}",
        "seconds to write": f"{row['seconds_to_write']:.1f}",
        "seconds to load": "– (no browser)" if loaded is None else Spread.of(loaded).shown(1),
    }


def make_worklist(n_slides: int, n_cells: int) -> Worklist:
    rng = np.random.default_rng(0)
    fractions = np.full(len(SCORE_BIN_EDGES) - 1, 1 / (len(SCORE_BIN_EDGES) - 1))
    slides = tuple(
        SlideResult(
            f"slide {i:04d}",
            f"slides/{i:04d}",
            Call.REVIEW,
            probability=float(rng.random()),
            n_instances=1000,
            key_instances=tuple(KeyInstance(f"cell {j}", 10.0 - j / 10, noise(rng)) for j in range(n_cells)),
            score_shares=tuple(fractions.tolist()),
        )
        for i in range(n_slides)
    )
    return Worklist(
        "slides", "2026-01-01T00:00:00+00:00", slides, 0.6, 0.3, {}, {}, {}, SCORE_BIN_EDGES, tuple(fractions.tolist())
    )


def noise(rng: np.random.Generator) -> bytes:
    """A smooth picture of 96 px with some noise. Its JPEG has about 2.7 KB, like those of real cells."""
    coarse = Image.fromarray(rng.integers(90, 230, (12, 12, 3), dtype=np.uint8)).resize(
        (96, 96), Image.Resampling.BICUBIC
    )
    grain = rng.integers(-8, 9, (96, 96, 1))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def load_seconds(page: Path, repeats: int = 3) -> list[float] | None:
    """Seconds of each load; None if there is no browser."""
    try:
        from selenium import webdriver
    except ImportError:
        return None
    browser_file, driver_file = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser_file or not driver_file:
        return None
    options = webdriver.ChromeOptions()
    options.binary_location = browser_file
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(flag)
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_file)) as browser:
        taken = []
        for _ in range(repeats):
            browser.get("about:blank")
            started = time.perf_counter()
            browser.get(page.as_uri())
            taken.append(time.perf_counter() - started)
            if not browser.title.startswith("Worklist"):
                raise SystemExit(f"Chromium did not open {page}: {browser.title or browser.page_source[:200]}")
    return taken
