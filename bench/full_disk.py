"""Run every command on a disk that is full after some bytes: it must be done, or end in one line and leave whole files.

The disk is a tmpfs of a given size, which root can mount on Linux; without it, a limit on the size of each file stands
for it. Sizes run from nothing free to more than the command needs. The exit status is 1 if a command crashes, prints
anything but one line that names its output, or leaves a half-written or temporary file.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from bench.fault_commands import COMMANDS, contents
from bench.faults import NEW, WRONG, Trial, table_of, trials
from bench.forked import Ended
from bench.tables import Measured

DONE, REFUSED, BAD_END, HALF, LEFT = "done", "one line", "other end", "half-written", "leftovers"
_OUTCOMES = (DONE, REFUSED, BAD_END, HALF, LEFT)
_FAULTS = (BAD_END, HALF, LEFT)
_PAGE = 4096
_FILLER = "filler"
_NAMED = re.compile(r"\b(out|cache|checkpoints|dvclive)\b.* (name another|--out)")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", type=int, default=10, help="disk sizes for each command")


def measure(options: argparse.Namespace) -> Measured:
    found: dict[str, Counter[str]] = {}
    details: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        is_disk = can_mount(Path(folder) / "tried")
    for trial in trials(COMMANDS):
        name = trial.command.name
        found[name] = Counter(runs=0)
        for size in sizes(trial, options.sizes, is_disk):
            kind, fault = attempt(trial, size, is_disk)
            found[name].update(["runs", kind])
            details += [f"{name}, {size:,} bytes: {fault}"] if fault else []
    table = table_of(found, ("runs", *_OUTCOMES), details)
    how = "a tmpfs with so many bytes free" if is_disk else "a limit on the size of each file"
    return Measured({name: dict(tally) for name, tally in found.items()}, (f"The disk is {how}.", table))


def sizes(trial: Trial, n: int, is_disk: bool) -> Iterator[int]:
    """``n`` numbers of bytes: free on the disk, up to six times the output; or for the largest file."""
    before, output = trial.before[1], trial.command.output
    written = [
        len(content)
        for name, content in trial.unbroken[1].items()
        if name.startswith(output) or before.get(name) != content
    ]
    most = 6 * sum(map(_on_disk, written)) if is_disk else max(written)
    for number in range(n):
        yield _on_disk(int(most * (number / (n - 1)) ** 2)) if is_disk else max(16, most * (number + 1) // (n + 1))


def attempt(trial: Trial, size: int, is_disk: bool) -> tuple[str, str]:
    """Run the command where it replaces a former output, with ``size`` bytes free. Returns the outcome and the fault."""
    start = trial.starts[1]
    needed = sum(_on_disk(file.stat().st_size) for file in start.rglob("*")) + _PAGE * len(list(start.rglob("*")))
    try:
        with mounted(trial.work, needed + size) if is_disk else nullcontext():
            shutil.copytree(start, trial.work, dirs_exist_ok=True)
            if is_disk:
                _fill(trial.work, size)
            limit: dict[str, Any] = {} if is_disk else {"largest_file": size}
            ended = trial.run(ends_quickly=False, **limit)
            (trial.work / _FILLER).unlink(missing_ok=True)
            kind, faults = trial.judged(1)
            new = contents(trial.work).keys() - trial.before[1].keys()
            left = sorted(name for name in new if ".partial" in name or name.endswith(".lock"))
            return _outcome(ended, kind, faults, left)
    finally:
        shutil.rmtree(trial.work, ignore_errors=True)


def _outcome(ended: Ended, kind: str, faults: list[str], left: list[str]) -> tuple[str, str]:
    if left:
        return LEFT, ", ".join(left)
    if kind == WRONG:
        return HALF, "; ".join(faults)
    if ended.status == 0:
        return (DONE, "") if kind == NEW else (BAD_END, f"status 0, but the output is {kind}")
    errors = [line for line in ended.output.splitlines() if line.startswith("error: ")]
    is_one_line = len(errors) == 1 and ended.output.rstrip().endswith(errors[0])
    if ended.status == 1 and is_one_line and _NAMED.search(errors[0]) and "Traceback" not in ended.output:
        return REFUSED, ""
    return BAD_END, f"status {ended.status}: {ended.output.strip()[-400:]}"


def _fill(folder: Path, free: int) -> None:
    """Leave only ``free`` bytes on the disk of ``folder``."""
    taken = shutil.disk_usage(folder).free - free
    if taken > 0:
        (folder / _FILLER).write_bytes(bytes(taken))


def can_mount(place: Path) -> bool:
    """Whether this user can mount a tmpfs."""
    try:
        with mounted(place, 1 << 20):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def mounted(place: Path, size: int) -> Iterator[None]:
    """Mount a tmpfs of ``size`` bytes at ``place``, which is made."""
    place.mkdir(parents=True, exist_ok=True)
    line = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    subprocess.run(line, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True, capture_output=True)


def _on_disk(size: int) -> int:
    return -(-size // _PAGE) * _PAGE
