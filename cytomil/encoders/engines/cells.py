"""Real cells for compiling: drawn from training bags, so that no test cell has a say in an engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cytomil.bags.manifest import open_listed, read_manifest
from cytomil.encoders.transform import CellTransform, decode_cells
from cytomil.errors import EngineError


def training_cells(bags: Path, transform: CellTransform, n: int, least: int, seed: int) -> np.ndarray:
    """Up to ``n`` cells drawn at random from all training bags, uint8 (m, S, S, 3); unreadable ones are left out.

    Raises `EngineError` where fewer than ``least`` can be had, `NotFoundError` or `BagFileError` for the bags.
    """
    manifest = read_manifest(bags)
    opened = [open_listed(manifest, row) for row in manifest.rows if row.split == "train"]
    places = [(bag, i) for bag in opened for i in range(len(bag))]
    drawn = sorted(np.random.default_rng(seed).permutation(len(places))[:n])
    chosen = [places[i] for i in drawn]
    encoded = [bag.images(i, i + 1)[0] for bag, i in chosen]
    pixels, _, _ = decode_cells(encoded, [bag.instance_ids[i] for bag, i in chosen], transform)
    if len(pixels) < least:
        raise EngineError(
            f"{bags} has {len(pixels)} readable cells in training bags; compiling takes at least {least}. "
            "Name bags with more cells with --bags."
        )
    # Drawn in the order of the bags, they are mixed again, so that halves of them are alike.
    return pixels[np.random.default_rng(seed).permutation(len(pixels))]
