"""Jobs for the tests of workers, in a module of their own so that another process can load them."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cytomil.errors import NoCellsError, TriageModelError
from cytomil.hdf5 import read_all


@dataclass(frozen=True)
class Square:
    """Squares numbers; kills its process at the numbers in ``deadly``, ``times`` times each."""

    folder: Path
    deadly: tuple[int, ...] = ()
    times: int = 1
    broken: str = ""
    device: str = "cpu"

    def start(self, context):
        if self.broken == "start":
            raise TriageModelError("no model there.")
        context.listener.note("started")
        with (self.folder / "starts").open("a") as file:
            file.write(f"{os.getpid()} {context.cores} {os.environ.get('OMP_NUM_THREADS')}\n")
        return partial(map, self.work)

    def work(self, number):
        if self.broken == "work":
            raise NoCellsError("no cells there.")
        deaths = self.folder / f"deaths-{number}"
        so_far = len(deaths.read_text()) if deaths.exists() else 0
        if number in self.deadly and so_far < self.times:
            deaths.write_text("x" * (so_far + 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return number**2, str(Path("relative").absolute())


@dataclass(frozen=True)
class FatalFile:
    """Takes the place of the job that reads HDF5 files apart: its process is killed by the files of this name."""

    name: str
    device: str = "cpu"

    def start(self, context):
        return partial(map, self.work)

    def work(self, path):
        if path.name == self.name:
            os.kill(os.getpid(), signal.SIGKILL)
        return read_all(path)
