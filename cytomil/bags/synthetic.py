"""Endless synthetic cells, the embedded default: for trying cytomil out, never for saying how good it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from cytomil.bags.bag_file import Instance
from cytomil.bags.images import encode_image
from cytomil.bags.synthetic_cells import ABNORMAL_KINDS, NORMAL_KINDS, render_cell

SOURCE = "synthetic"


def synthetic_normal(seed: int, size: int, difficulty: float) -> Iterator[Instance]:
    """Rendered normal cells of all normal kinds, in a fixed order for a seed."""
    return _render(NORMAL_KINDS, 0, seed, size, difficulty)


def synthetic_abnormal(seed: int, size: int, difficulty: float) -> Iterator[Instance]:
    """Rendered abnormal cells of all abnormal kinds, in a fixed order for a seed."""
    return _render(ABNORMAL_KINDS, 1, seed, size, difficulty)


def _render(kinds: Sequence[str], label: int, seed: int, size: int, difficulty: float) -> Iterator[Instance]:
    rng = np.random.default_rng([seed, label])
    while True:
        kind = kinds[int(rng.integers(len(kinds)))]
        image = encode_image(render_cell(kind, rng, size=size, difficulty=difficulty))
        yield Instance(hashlib.sha256(image).hexdigest()[:16], image, label=label, source=f"{SOURCE}/{kind}")
