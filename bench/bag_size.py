"""Time and peak memory of the default embed and rank by the size of a bag.

Bags contain real blood-smear cells, repeated as often as needed. Each verb runs in a separate process, and its start-up
counts. The difference between two bags gives the cost per additional cell.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import Any

from bench.child import cytomil
from bench.data import BLOOD_SMEAR, blood_smear_bags, require_cells
from bench.tables import Measured, Table
from cytomil.bags.bag_file import BagInfo, Instance, open_bag, write_bag
from cytomil.bags.manifest import BagRow, read_manifest, write_manifest


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="?", type=Path, default=BLOOD_SMEAR, help="class folders of cells")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="cells in a bag")
    parser.add_argument(
        "--image-size",
        type=int,
        default=128,
        help="pixels; a smaller size is faster and does not change the memory per cell",
    )


def measure(options: argparse.Namespace) -> Measured:
    require_cells(options.data)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bags = blood_smear_bags(options.data, root / "bags", 100, train_bags=6)
        make_model(root, bags, options.image_size)
        for size in sorted(options.sizes):
            print(f"bag_size: {size:,} cells", file=sys.stderr, flush=True)
            large = root / f"bags-{size}"
            write_large_bag(bags, large, size)
            line: list[str | Path] = [
                "--bags",
                large,
                "--encoder",
                root / "encoder",
                "--out",
                root / f"features-{size}",
            ]
            embedded = cytomil("embed", *line)
            ranked = cytomil("rank", large, "--model", root / "model", "--out", root / f"triage-{size}")
            for verb, child in (("embed", embedded), ("rank", ranked)):
                rows.append({"cells": size, "verb": verb, "seconds": child.seconds, "peak_mb": child.together_mb})
    further = further_cell(rows)
    return Measured({"runs": rows, "seconds_a_further_cell": further}, (Table.of(*map(_shown, _by_verb(rows))),))


def make_model(root: Path, bags: Path, image_size: int) -> None:
    """Fit a model of the default recipe to few cells. Time and memory do not depend on what it has learnt."""
    encoder, features = root / "encoder", root / "features"
    cytomil("pretrain", "--bags", bags, "--out", encoder, "--image-size", str(image_size))
    cytomil("embed", "--bags", bags, "--encoder", encoder, "--out", features)
    cytomil("fit-mil", "--features", features, "--encoder", encoder, "--out", root / "model")


def write_large_bag(bags: Path, out: Path, size: int, count: int = 1) -> None:
    """Write ``count`` test bags of ``size`` cells each. They repeat the cells of ``bags`` under unique names."""
    manifest = read_manifest(bags)
    images = [image for row in manifest.rows for image in open_bag(manifest.file_of(row)).images()]
    endless = cycle(images)
    out.mkdir()
    rows = []
    for number in range(count):
        name = f"large-{number}"
        cells = (Instance(f"cell-{i:06d}", image) for i, image in enumerate(islice(endless, size)))
        sha256, n = write_bag(out / f"{name}.h5", BagInfo(name, 0), cells)
        rows.append(BagRow(name, f"{name}.h5", "", "test", 0, n, None, sha256))
    write_manifest(out, rows)


def further_cell(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Seconds per cell in addition to the next smaller bag, per verb. Start-up cancels out."""
    seconds = {}
    for verb in ("embed", "rank"):
        runs = [row for row in rows if row["verb"] == verb]
        seconds[verb] = [(b["seconds"] - a["seconds"]) / (b["cells"] - a["cells"]) for a, b in pairwise(runs)]
    return seconds


def _by_verb(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (row["verb"], row["cells"]))


def _shown(row: dict[str, Any]) -> dict[str, str]:
    return {
        "verb": row["verb"],
        "cells in the bag": f"{row['cells']:,}",
        "seconds": f"{row['seconds']:.1f}",
        "cells/s": f"{row['cells'] / row['seconds']:,.0f}",
        "peak memory, MB": f"{row['peak_mb']:,.0f}",
    }
