"""Fuzz the readers of files with a coverage-guided fuzzer (atheris, which must be installed).

A reader must not raise anything but a one-line error, hang for five seconds, or take more than a gigabyte beyond what
the process needs. The exit status is 1 if a reader does. The input that made it do so is kept in ``--corpus``.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.fuzz_targets import readers, seeds
from bench.mutate import make_files
from bench.tables import Measured, Table

_HANG_S = 5
_MEMORY_MB = 1024 + 700  # the fuzzer and the libraries need some 600 MB
_EXECUTIONS = re.compile(r"stat::number_of_executed_units:\s+(\d+)")
_COVERED = re.compile(r"cov: (\d+)")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=int, default=60, help="for each reader")
    parser.add_argument("--readers", nargs="*", default=list(readers()), help="default: all")
    parser.add_argument("--corpus", type=Path, default=None, help="folder of inputs to go on from; default: a new one")
    parser.add_argument("--seed", type=int, default=1)


def measure(options: argparse.Namespace) -> Measured:
    with tempfile.TemporaryDirectory() as temporary:
        root = options.corpus or Path(temporary)
        made = Path(temporary) / "made"
        made.mkdir()
        make_files(made)
        for i, (name, content) in enumerate(seeds(made)):
            folder = root / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"seed-{i}").write_bytes(content)
        rows = [_fuzz(name, root / name, options.seconds, options.seed) for name in options.readers]
    found = [f"{row['reader']}: {finding}" for row in rows if (finding := row.pop("finding"))]
    table = Table.of(*rows)
    if found:
        raise SystemExit("\n".join([table.markdown(), *found, f"The inputs are in {root}."]))
    total = sum(row["executions"] for row in rows)
    text = f"{total:,} executions, {options.seconds} s for each reader, seed {options.seed}."
    return Measured({str(row["reader"]): row for row in rows}, (text, table))


def _fuzz(name: str, corpus: Path, seconds: int, seed: int) -> dict[str, Any]:
    line = [sys.executable, "-m", "bench.fuzz_targets", name, str(corpus), f"-max_total_time={seconds}"]
    line += [f"-timeout={_HANG_S}", f"-rss_limit_mb={_MEMORY_MB}", f"-seed={seed}", "-print_final_stats=1"]
    line += [f"-artifact_prefix={corpus.parent}/found-{name.replace(' ', '-')}-"]
    started = time.perf_counter()
    done = subprocess.run(line, capture_output=True, text=True, errors="replace", check=False)
    executions = _EXECUTIONS.findall(done.stderr)
    covered = _COVERED.findall(done.stderr)
    row = {
        "reader": name,
        "executions": int(executions[-1]) if executions else 0,
        "seconds": round(time.perf_counter() - started),
        "edges covered": int(covered[-1]) if covered else 0,
        "finding": "" if done.returncode == 0 else _finding(done.stdout + done.stderr),
    }
    print(f"fuzz: {name}: {row['executions']:,} executions. {row['finding']}", file=sys.stderr)
    return row


def _finding(output: str) -> str:
    lines = output.splitlines()
    for mark in ("=== Uncaught Python exception: ===", "ERROR: libFuzzer"):
        for i, line in enumerate(lines):
            if mark in line:
                return (lines[i + 1] if mark.startswith("===") else line)[:120]
    return lines[-1][:120] if lines else "ended without a word"
