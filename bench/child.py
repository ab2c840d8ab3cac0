"""A process of its own: its wall time and its peak memory, without the memory of whoever started it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

# Linux counts a parent's memory at the fork as the child's own peak, so a small program starts the child and reports on it.
_LAUNCHER = """
import json, os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
process.returncode = os.waitstatus_to_exitcode(status)
told = {"seconds": time.perf_counter() - started, "status": process.returncode, "peak": usage.ru_maxrss,
        "cpu": usage.ru_utime + usage.ru_stime}
with open(sys.argv[1], "w") as file:
    json.dump(told, file)
"""
_KIB_TO_MB = 1024 / 1e6


@dataclass(frozen=True)
class Child:
    """What a process did. ``cpu_seconds`` are the processors' time, which other work beside it hardly changes.

    ``peak_mb`` is the largest resident memory of any one of its processes, by the operating system's account.
    ``together_mb`` is the sum over all of them where there are several, memory that they share counted once, looked at
    four times a second: peaks in between are missed.
    """

    seconds: float
    cpu_seconds: float
    status: int
    peak_mb: float
    together_mb: float
    stdout: str
    stderr: str


def run(
    command: Sequence[str | Path],
    accepted: Sequence[int] = (0,),
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> Child:
    """Run ``command`` to its end, in the folder ``cwd`` where one is named.

    Raises `SystemExit` with what it said where its exit status is not accepted.
    """
    with tempfile.TemporaryDirectory() as folder:
        told, out, err = (Path(folder) / name for name in ("told.json", "stdout", "stderr"))
        line = [sys.executable, "-S", "-c", _LAUNCHER, str(told), *map(str, command)]
        with out.open("wb") as stdout, err.open("wb") as stderr:
            launcher = subprocess.Popen(line, stdout=stdout, stderr=stderr, env={**os.environ, **(env or {})}, cwd=cwd)
            together = _watch(launcher)
        said = err.read_text(errors="replace")
        if not told.is_file():
            raise SystemExit(f"{command[0]} could not be started:\n{said}")
        account = json.loads(told.read_text())
        if account["status"] not in accepted:
            raise SystemExit(f"{' '.join(map(str, command))} failed with status {account['status']}:\n{said}")
        return Child(
            account["seconds"],
            account["cpu"],
            account["status"],
            account["peak"] * _KIB_TO_MB,
            max(together, account["peak"] * _KIB_TO_MB),
            out.read_text(errors="replace"),
            said,
        )


def cytomil(*line: str | Path, accepted: Sequence[int] = (0, 3)) -> Child:
    """One verb in a process of its own. Slides or cells that could not be used (status 3) do not fail it."""
    return run([sys.executable, "-m", "cytomil", *line], accepted)


def call(function: Callable[..., Any], *arguments: Any) -> tuple[Any, Child]:
    """``function(*arguments)`` in a process of its own; arguments and result must be what JSON can say."""
    named = [function.__module__, function.__name__, json.dumps(arguments)]
    child = run([sys.executable, "-m", "bench.child", *named])
    return json.loads(child.stdout.splitlines()[-1]), child


def own_peak_mb() -> float:
    """Peak resident memory of this very process so far; Linux only."""
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM:"))
    return int(line.split()[1]) * _KIB_TO_MB


def _watch(launcher: subprocess.Popen[bytes]) -> float:
    """Wait for the launcher's end; the most that several processes below it held together, MB."""
    peak, ended = 0.0, threading.Event()

    def look() -> None:
        nonlocal peak
        parent = psutil.Process(launcher.pid)
        while not ended.wait(0.25):
            try:
                processes = parent.children(recursive=True)
                # To add up what a process shares takes the kernel long enough to slow it, and one alone needs no sum.
                if len(processes) > 1:
                    peak = max(peak, sum(map(_share_mb, processes)))
            except psutil.NoSuchProcess:
                return

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        launcher.wait()
    finally:
        ended.set()
        watcher.join()
    return peak


def _share_mb(process: psutil.Process) -> float:
    try:
        return process.memory_full_info().pss / 1e6
    except (psutil.NoSuchProcess, psutil.AccessDenied, AttributeError):
        return 0.0


if __name__ == "__main__":
    module, name, given = sys.argv[1:]
    print(json.dumps(getattr(importlib.import_module(module), name)(*json.loads(given))))
