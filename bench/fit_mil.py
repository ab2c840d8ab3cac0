"""fit-mil compared with a plain loop by bag size, and the memory of scoring a bag of a million cells.

The plain loop (`bench/reference_mil.py`) fits one model after another with PyTorch's default threads, and reads every bag
from HDF5 in every epoch. The cross-validation of fit-mil does the same fits in parallel. Both are timed alternately in one
run.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.child import call, own_peak_mb
from bench.tables import Measured, Table
from bench.timing import interleaved

if TYPE_CHECKING:
    from cytomil.features.cache import EmbeddedBlock

_DIM = 512
_BLOCK = 10_000


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bags", type=int, default=18)
    parser.add_argument("--bag-size", type=int, default=1_000)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3, help="models per fold")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--curve", type=int, nargs="*", default=[1_000, 10_000, 100_000], help="cells of a bag")
    parser.add_argument("--scored", type=int, default=1_000_000, help="cells of the bag whose scoring is measured")


def measure(options: argparse.Namespace) -> Measured:
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        fits = compare(root, options.bags, options.bag_size, options.epochs, options.seeds, options.repeats)
        curve = [compare(root, 4, size, 1, 2, options.repeats) for size in options.curve]
        scored, _ = call(score, str(root), options.scored)
    parts = (
        f"{options.bags} bags of {options.bag_size:,} × {_DIM}, {options.epochs} epochs, 3 folds × {options.seeds} seeds:",
        Table.of(_shown(fits)),
        *(("Four bags of growing size, one epoch, 2 folds × 2 seeds:", Table.of(*map(_shown, curve))) if curve else ()),
        f"One bag of {options.scored:,} × {_DIM} float16, scored by three PAMIL models and checked for novelty:",
        Table.of({name: f"{value:,.2f}" for name, value in scored.items()}),
    )
    return Measured({"fit": fits, "curve": curve, "scored": scored}, parts)


def compare(root: Path, n: int, size: int, epochs: int, seeds: int, repeats: int) -> dict[str, Any]:
    """Seconds of both cross-validations, and their ratio."""
    import torch

    from bench.reference_mil import FeatureFile, cross_validate
    from cytomil.mil import cross_validate as ours
    from cytomil.mil.bags import TrainingBag
    from cytomil.mil.config import FitMilConfig
    from cytomil.progress import Silent

    files = []
    for i in range(n):
        path = root / f"{size}-{i}.h5"
        write(path, size, "float32", seed=i, shift=i % 2)
        files.append(FeatureFile(path, i % 2))
    settings = FitMilConfig(aggregator="pamil", epochs=epochs, ensemble=seeds, folds=3 if n > 4 else 2)

    def loaded() -> list[TrainingBag]:
        return [TrainingBag(str(i), file.read(), file.label, str(i)) for i, file in enumerate(files)]

    folds = ours.assign_folds(loaded(), settings).tolist()
    threads = torch.get_num_threads()
    candidates: dict[str, Callable[[], object]] = {
        "plain": lambda: cross_validate(files, folds, seeds, epochs),
        "ours": lambda: ours.cross_validate(loaded(), settings, Silent()),
    }
    timed = interleaved(candidates, repeats, warm_up=0)
    for file in files:
        file.path.unlink()
    ratio = timed["ours"].times_faster_than(timed["plain"])
    return {
        "bag_size": size,
        "torch_threads": threads,
        "plain_seconds": timed["plain"].spread.median,
        "seconds": timed["ours"].spread.median,
        "ratio": [ratio.median, ratio.low, ratio.high],
    }


def score(root: str, n: int) -> dict[str, float]:
    """Memory of scoring one bag from its file, in GB. Run it in a separate process."""
    import torch

    from cytomil.features.cache import FeatureKey, open_features, write_features
    from cytomil.mil.bags import Standardiser, TrainingBag
    from cytomil.mil.config import InstanceScore
    from cytomil.mil.cross_validate import Ensemble, Member
    from cytomil.mil.novelty import fit_novelty
    from cytomil.mil.pamil import PAMIL

    path = Path(root) / "large.h5"
    write_features(path, "large", FeatureKey("", "", "z", "", "eager", "float16", "1"), _DIM, _slide(n))
    small = [np.random.default_rng(i).normal(size=(1_000, _DIM)).astype(np.float32) for i in range(4)]
    bags = [TrainingBag(str(i), torch.from_numpy(values), i % 2, str(i)) for i, values in enumerate(small)]
    novelty = fit_novelty(bags, np.array([0, 0, 1, 1]))
    standardise = Standardiser(torch.zeros(_DIM), torch.ones(_DIM))
    members = tuple(Member(PAMIL(_DIM).eval(), standardise, 1.0) for _ in range(3))
    ensemble = Ensemble("pamil", members, InstanceScore.EVIDENCE)
    ensemble.assess(small[0])
    before = own_peak_mb() / 1000
    features = open_features(path)
    assessment = ensemble.assess_blocks(features.blocks())
    beyond = novelty.measure(features.blocks()).is_beyond
    if len(assessment.scores) != n or len(beyond) != n:
        raise SystemExit("not every cell was scored")
    size, peak = path.stat().st_size / 1e9, own_peak_mb() / 1000
    path.unlink()
    return {"file, GB": size, "before, GB": before, "peak, GB": peak, "peak less file, GB": peak - size}


def _slide(n: int) -> Iterator[EmbeddedBlock]:
    """``n`` random cells with ids as long as a SHA-256 hash."""
    from cytomil.features.cache import EmbeddedBlock

    rng = np.random.default_rng(0)
    for start in range(0, n, _BLOCK):
        count = min(_BLOCK, n - start)
        ids = [f"{i:064x}" for i in range(start, start + count)]
        yield EmbeddedBlock(ids, np.zeros((count, 2), np.int64), rng.standard_normal((count, _DIM), np.float32))


def write(path: Path, n: int, dtype: str, seed: int, shift: float) -> None:
    """Write random embeddings, with one cell in twenty shifted, in the same chunks as embed."""
    import h5py

    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        features = file.create_dataset("features", (n, _DIM), dtype, chunks=(min(256, n), _DIM))
        for start in range(0, n, _BLOCK):
            block = rng.standard_normal((min(_BLOCK, n - start), _DIM), np.float32)
            block[::20, :20] += 2 * shift
            features[start : start + len(block)] = block.astype(dtype)


def _shown(row: dict[str, Any]) -> dict[str, str]:
    median, low, high = row["ratio"]
    return {
        "cells per bag": f"{row['bag_size']:,}",
        "plain loop, s": f"{row['plain_seconds']:.1f}",
        "fit-mil, s": f"{row['seconds']:.1f}",
        "times faster": f"{median:.2f} ({low:.2f}–{high:.2f})",
    }
