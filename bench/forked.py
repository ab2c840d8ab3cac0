"""Runs commands of cytomil in forked processes, kills them at one file operation or after a time, and limits their disk.

Importing PyTorch takes seconds, and a fork milliseconds. A server process imports everything, computes nothing, has no
threads, and forks for each command. The moment that files record stands still, so that two runs write the same bytes.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

RECORDED_MOMENT = "2026-01-01T00:00:00+00:00"
_CHANGES = frozenset({"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink"})
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_IMPORTED = (
    "cytomil.app.cli.app",
    "cytomil.bags.make",
    "cytomil.bags.labelled_slides",
    "cytomil.encoders.engines.compile",
    "cytomil.encoders.engines.openvino",
    "cytomil.evaluation.run",
    "cytomil.features.embed",
    "cytomil.mil.fit",
    "cytomil.review.summary",
    "cytomil.training.loop",
    "cytomil.triage.rank",
    "cytomil.triage.write",
    # What these import when they first need it.
    "PIL.ImageCms",
    "PIL.JpegImagePlugin",
    "dvc.repo",
    "dvc.scm",
    "dvclive.live",
    "matplotlib.backends.backend_agg",
    "openslide",
    "scipy.ndimage",
    "scipy.stats",
    "simplejpeg",
    "sklearn.covariance",
    "sklearn.discriminant_analysis",
    "sklearn.linear_model",
    "sklearn.metrics",
    "sklearn.mixture",
    "timm",
)


@dataclass(frozen=True)
class Order:
    """How to run one command.

    Args:
        line: the words after ``cytomil``.
        folder: the working folder.
        kill_at: number of the file operation, from 1, before which the process kills itself.
        kill_after: seconds after which it is killed.
        largest_file: bytes that no file may exceed, as with a full disk.
        clock: seconds that are added to the clock.
        ends_quickly: end without what Python and libraries do at exit, which takes a second.
        vanishing: path below ``folder`` that is removed when a file named ``vanishes_with`` is opened for the first time.
    """

    line: Sequence[str]
    folder: str
    kill_at: int | None = None
    kill_after: float | None = None
    largest_file: int | None = None
    clock: float = 0.0
    ends_quickly: bool = True
    vanishing: str = ""
    vanishes_with: str = ""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Args:
        status: exit status, or the negative number of the signal that ended it.
        operations: number of file operations; 0 if it was killed.
        seconds: that it took.
        output: what it printed.
    """

    status: int
    operations: int
    seconds: float
    output: str

    @property
    def is_killed(self) -> bool:
        return self.status == -signal.SIGKILL


class Forks:
    """A server process that forks for each command. Use it as a context manager."""

    def __enter__(self) -> Forks:
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "DVC_NO_ANALYTICS": "1",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        command = [sys.executable, "-m", "bench.forked"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError("the server of forks did not start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def run(self, line: Sequence[str], folder: Path, **options: Any) -> Ended:
        """Run one command. ``options`` are those of `Order`."""
        (ended,) = self.run_together([Order(line, str(folder), **options)])
        return ended

    def run_together(self, orders: Sequence[Order]) -> list[Ended]:
        """Run several commands at the same time."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps([asdict(order) for order in orders]), file=self._process.stdin, flush=True)
        return [Ended(**one) for one in json.loads(self._process.stdout.readline())]


class _Watch:
    """Counts the file operations of a command, as Python's audit events and cytomil's exchange of folders report them."""

    def __init__(self, order: Order) -> None:
        self.operations = 0
        self._order = order
        self._is_gone = not order.vanishing

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not self._is_gone and Path(os.fsdecode(path) if isinstance(path, bytes) else str(path)).name == (
                self._order.vanishes_with
            ):
                self._is_gone = True
                Path(self._order.vanishing).unlink()
            if flags & _WRITING:
                self.count()
        elif event in _CHANGES:
            self.count()

    def count(self) -> None:
        self.operations += 1
        if self.operations == self._order.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def _serve() -> None:
    from cytomil import cards

    cards.now = lambda: RECORDED_MOMENT  # before others import it by name
    for name in _IMPORTED:
        importlib.import_module(name)
    n_threads = len(list(Path("/proc/self/task").iterdir()))
    if n_threads > 1:
        raise RuntimeError(f"{n_threads} threads before the first fork")
    gc.freeze()  # a collection would copy the memory of the server into each fork
    print("ready", flush=True)
    for request in sys.stdin:
        print(
            json.dumps([asdict(ended) for ended in _run([Order(**order) for order in json.loads(request)])]), flush=True
        )


@dataclass
class _Running:
    order: Order
    process: int
    started: float
    output: bytes = b""

    def is_due(self, now: float) -> bool:
        return self.order.kill_after is not None and now - self.started >= self.order.kill_after


def _run(orders: Sequence[Order]) -> list[Ended]:
    running: dict[int, _Running] = {}
    counts: dict[int, int] = {}
    ended: dict[int, Ended] = {}
    for order in orders:
        output, its_output = os.pipe()
        count, its_count = os.pipe()
        process = os.fork()
        if process == 0:
            status = _command(order, its_output, its_count)
            if not order.ends_quickly:
                raise SystemExit(status)
            sys.stdout.flush()
            os._exit(status)
        os.close(its_output)
        os.close(its_count)
        running[output] = _Running(order, process, time.monotonic())
        counts[output] = count
    places = {output: i for i, output in enumerate(running)}
    while running:
        ready, _, _ = select.select(list(running), [], [], 0.001)
        for one in running.values():
            if one.is_due(time.monotonic()):
                os.kill(one.process, signal.SIGKILL)
        for output in ready:
            part = os.read(output, 65536)
            if part:
                running[output].output += part
                continue
            one = running.pop(output)
            _, status = os.waitpid(one.process, 0)
            operations = os.read(counts[output], 64)
            os.close(output)
            os.close(counts[output])
            ended[places[output]] = Ended(
                os.waitstatus_to_exitcode(status),
                int(operations or 0),
                time.monotonic() - one.started,
                one.output.decode(errors="replace"),
            )
    return [ended[i] for i in range(len(orders))]


def _command(order: Order, output: int, count: int) -> int:
    """Run the command in this forked process. Returns its exit status."""
    from cytomil import files
    from cytomil.app.cli.app import main

    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(order.folder)
    if order.clock:
        genuine = time.time
        time.time = lambda: genuine() + order.clock
    if order.largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order.largest_file, order.largest_file))
    setattr(os, "fsync", lambda descriptor: None)  # noqa: B010 (no power is cut here)
    watch = _Watch(order)
    setattr(files, "_exchange", _counted(watch, files._exchange))  # noqa: B010
    sys.addaudithook(watch)
    sys.argv = ["cytomil", *order.line]
    status: Any = 0
    try:
        main()
    except SystemExit as end:
        status = end.code
    os.write(count, str(watch.operations).encode())
    os.close(count)
    return status if isinstance(status, int) else int(status is not None)


def _counted(watch: _Watch, exchange: Callable[[Path, Path], bool]) -> Callable[[Path, Path], bool]:
    def counted(first: Path, second: Path) -> bool:
        watch.count()
        done = exchange(first, second)
        watch.count()
        return done

    return counted


if __name__ == "__main__":
    _serve()
