"""Time and memory of every verb on real cells: `python -m bench.road [DATA_DIR]`.

Each verb runs as a process of its own; wall time and peak resident memory are the operating system's account of it. The
machine's float32 matrix-product peak is measured in the same run, to hold the encoder's share of it against. make-bags and
embed are run on a quarter of the cells too: their memory must not grow with the number of cells.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

DEFAULT_DATA = Path(__file__).parents[2] / "shared" / "data" / "blood-smear"
CLASSES = ["--normal", "neutrophil,eosinophil,lymphocyte,monocyte", "--abnormal", "ig,erythroblast,basophil"]


@dataclass(frozen=True)
class Run:
    """One verb on ``cells`` cells: wall seconds, cells or views a second, peak resident memory in MB."""

    verb: str
    cells: int
    seconds: float
    per_second: float
    peak_mb: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, default=DEFAULT_DATA, help="class folders of cells")
    parser.add_argument("--image-size", type=int, default=32, help="pixels")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        print(f"skipped: {arguments.data} is not there; name a folder of class folders", file=sys.stderr)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        runs = walk(arguments.data, Path(folder), arguments.image_size, arguments.epochs)
    peak = matmul_peak()
    flops = encoder_flops(arguments.image_size)
    report = {"runs": [asdict(run) for run in runs], "matmul_gflops": peak, "encoder_gflop_per_image": flops}
    print(json.dumps(report, indent=2) if arguments.json else markdown(runs, peak, flops, arguments.image_size))
    return 0


def walk(data: Path, root: Path, image_size: int, epochs: int) -> list[Run]:
    runs = []
    for name, train, test in (("small", 6, 2), ("full", 20, 5)):
        where = root / name
        bags, encoder, features, model = (where / part for part in ("bags", "encoder", "features", "model"))
        n_train, n_all = train * 200, (train + test) * 200
        shape = ["--bag-size", "200", "--train-bags", str(train), "--test-bags", str(test)]
        runs.append(run(["make-bags", str(data), *CLASSES, *shape, "--out", str(bags)], n_all))
        line = ["pretrain", "--bags", str(bags), "--out", str(encoder), "--image-size", str(image_size)]
        runs.append(run([*line, "--epochs", str(epochs)], n_train * epochs))
        runs.append(run(["embed", "--bags", str(bags), "--encoder", str(encoder), "--out", str(features)], n_all))
        line = ["fit-mil", "--features", str(features), "--encoder", str(encoder), "--out", str(model)]
        runs.append(run([*line, "--epochs", "20"], n_train))
        line = ["evaluate", "--features", str(features), "--model", str(model), "--bags", str(bags)]
        runs.append(run([*line, "--out", str(where / "reports")], test * 200))
        runs.append(run(["rank", str(bags), "--model", str(model), "--out", str(where / "triage")], n_all))
    return runs


def run(line: list[str], cells: int) -> Run:
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "cytomil", *line], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if os.waitstatus_to_exitcode(status) not in (0, 3):
        raise SystemExit(f"cytomil {' '.join(line)} failed:\n{said}")
    return Run(line[0], cells, seconds, cells / seconds, usage.ru_maxrss / 1024)


def matmul_peak(n: int = 2048, repeats: int = 12) -> float:
    """Best of several float32 products of n×n matrices, in GFLOP/s."""
    # Imported only after the verbs have run: Linux counts a parent's memory at the fork as the child's own peak.
    import torch

    a, b = torch.randn(n, n), torch.randn(n, n)
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best / 1e9


def encoder_flops(image_size: int) -> float:
    """GFLOP of one forward pass of one cell."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from cytomil.encoders.architecture import Architecture, Encoder, resolve_stem

    encoder = Encoder(Architecture(stem=resolve_stem("auto", image_size))).eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        encoder(torch.zeros(1, 3, image_size, image_size))
    return counter.get_total_flops() / 1e9


def markdown(runs: list[Run], peak: float, flops: float, image_size: int) -> str:
    lines = [
        f"{image_size} px; matmul peak {peak:,.0f} GFLOP/s; one forward pass {flops:.3f} GFLOP: "
        f"{peak / flops:,.0f} cells/s at most",
        "",
        "| verb | cells | seconds | cells/s | peak memory, MB |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [f"| {r.verb} | {r.cells:,} | {r.seconds:.1f} | {r.per_second:,.0f} | {r.peak_mb:,.0f} |" for r in runs]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
