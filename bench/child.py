"""Run a separate process and measure its wall time and peak memory, excluding the memory of its parent."""

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

# Linux includes the parent's memory at the fork in the peak of the child. A small program therefore starts the child.
_LAUNCHER = """
import json, os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
process.returncode = os.waitstatus_to_exitcode(status)
report = {"seconds": time.perf_counter() - started, "status": process.returncode, "peak": usage.ru_maxrss,
          "cpu": usage.ru_utime + usage.ru_stime}
with open(sys.argv[1], "w") as file:
    json.dump(report, file)
"""
_KIB_TO_MB = 1024 / 1e6


@dataclass(frozen=True)
class Child:
    """The result of a process.

    Args:
        seconds: wall time.
        cpu_seconds: processor time, which other work on the machine hardly affects.
        status: exit status.
        peak_mb: largest resident memory of any single process, as reported by the operating system.
        together_mb: sum over all processes if there are several, with shared memory counted once. It is sampled four times
            per second, so short peaks are missed.
        stdout: standard output.
        stderr: standard error.
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
    """Run ``command`` to its end, optionally in the folder ``cwd``.

    Raises:
        SystemExit: its exit status is not in ``accepted``. The message is its standard error.
    """
    with tempfile.TemporaryDirectory() as folder:
        report, out, err = (Path(folder) / name for name in ("report.json", "stdout", "stderr"))
        line = [sys.executable, "-S", "-c", _LAUNCHER, str(report), *map(str, command)]
        with out.open("wb") as stdout, err.open("wb") as stderr:
            launcher = subprocess.Popen(line, stdout=stdout, stderr=stderr, env={**os.environ, **(env or {})}, cwd=cwd)
            together = _watch(launcher)
        stderr_text = err.read_text(errors="replace")
        if not report.is_file():
            raise SystemExit(f"{command[0]} could not be started:\n{stderr_text}")
        usage = json.loads(report.read_text())
        if usage["status"] not in accepted:
            raise SystemExit(f"{' '.join(map(str, command))} failed with status {usage['status']}:\n{stderr_text}")
        return Child(
            usage["seconds"],
            usage["cpu"],
            usage["status"],
            usage["peak"] * _KIB_TO_MB,
            max(together, usage["peak"] * _KIB_TO_MB),
            out.read_text(errors="replace"),
            stderr_text,
        )


def cytomil(*line: str | Path, accepted: Sequence[int] = (0, 3)) -> Child:
    """Run one verb in a separate process. Slides or cells that could not be used (status 3) are not a failure."""
    return run([sys.executable, "-m", "cytomil", *line], accepted)


def call(function: Callable[..., Any], *arguments: Any) -> tuple[Any, Child]:
    """Run ``function(*arguments)`` in a separate process. Arguments and result must be serialisable as JSON."""
    named = [function.__module__, function.__name__, json.dumps(arguments)]
    child = run([sys.executable, "-m", "bench.child", *named])
    return json.loads(child.stdout.splitlines()[-1]), child


def own_peak_mb() -> float:
    """Peak resident memory of this process so far. Linux only."""
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM:"))
    return int(line.split()[1]) * _KIB_TO_MB


def _watch(launcher: subprocess.Popen[bytes]) -> float:
    """Wait for the launcher's end. Returns the peak of the memory of all its descendants together, in MB."""
    peak, ended = 0.0, threading.Event()

    def sample() -> None:
        nonlocal peak
        parent = psutil.Process(launcher.pid)
        while not ended.wait(0.25):
            try:
                processes = parent.children(recursive=True)
                # Counting shared memory slows the process down, and is not needed for a single process.
                if len(processes) > 1:
                    peak = max(peak, sum(map(_proportional_mb, processes)))
            except psutil.NoSuchProcess:
                return

    watcher = threading.Thread(target=sample)
    watcher.start()
    try:
        launcher.wait()
    finally:
        ended.set()
        watcher.join()
    return peak


def _proportional_mb(process: psutil.Process) -> float:
    try:
        return process.memory_full_info().pss / 1e6
    except (psutil.NoSuchProcess, psutil.AccessDenied, AttributeError):
        return 0.0


if __name__ == "__main__":
    module, name, given = sys.argv[1:]
    print(json.dumps(getattr(importlib.import_module(module), name)(*json.loads(given))))
