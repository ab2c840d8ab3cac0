"""Slides are read in another process. A file that crashes it, blocks it or exhausts its memory costs only that slide."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from operator import attrgetter, methodcaller
from pathlib import Path
from typing import Any

import numpy as np

from cytomil.errors import CytomilError, SlideUnreadableError, why_unreadable
from cytomil.features.cells import CellBlock, Preparation
from cytomil.limits import progress
from cytomil.threads import prefetch
from cytomil.triage.sources import CellFolder, SlideEntry, SlideSource, n_cells, open_source
from cytomil.triage.whole_slide import SlideReading, WholeSlide, with_places, with_qc
from cytomil.triage.worklist import SlideResult
from cytomil.workers.apart import DAMAGED, NEEDS_MEMORY, EndedError, ProcessApart
from cytomil.workers.local import JobContext

_S_PER_CELL = 1e-4  # writing a cell's outline and score takes some 20 µs
_CURE = f"{DAMAGED} Copy it again from the scanner."


class ReadingProcess(ProcessApart):
    """Reads slides one after another in another process, and replaces it if it ends.

    ``harmful`` are slides that ended an earlier process, each with the message; more are added.
    """

    def __init__(self, harmful: dict[Path, str] | None = None) -> None:
        self._harmful = {} if harmful is None else harmful
        super().__init__(Reading())

    def n_cells(self, found: SlideEntry) -> int | None:
        """See `cytomil.triage.sources.n_cells`. 0 if the slide cannot be read."""
        try:
            return self.run(found.path, partial(_n_cells, found, Path.cwd()))
        except CytomilError:
            return 0

    def open(self, found: SlideEntry, reading: SlideReading) -> SlideApart:
        """Open one entry of a folder of slides. Raises a `CytomilError` that says why it cannot be read."""
        is_whole = self.run(found.path, partial(_open, found, reading, Path.cwd()))
        return SlideApart(self, found, is_whole)

    def forgive(self, path: Path) -> None:
        """Try the slide at ``path`` again, even if it ended the process before, because its file has changed."""
        self._harmful.pop(path, None)

    def run(self, path: Path, request: Callable[[_Served], Any]) -> Any:
        """The result of ``request`` in the process, about the slide at ``path``.

        Raises what it raises. Raises `SlideUnreadableError` if the process ends, blocks or lacks memory. A slide that
        ended the process is not tried again.
        """
        if path in self._harmful:
            raise SlideUnreadableError(self._harmful[path])
        try:
            return self.ask(request)
        except EndedError as ended:
            self._harmful[path] = f"{path}: {ended}. {_CURE}"
            raise SlideUnreadableError(self._harmful[path]) from None
        except MemoryError:
            raise SlideUnreadableError(f"{path}: {NEEDS_MEMORY}. {_CURE}") from None
        except OSError as error:
            raise SlideUnreadableError(f"{path}: {why_unreadable(path, error)}") from None


class SlideApart:
    """One slide, opened in a `ReadingProcess`. Its members are those of `cytomil.triage.sources.SlideSource`.

    ``is_whole``: whether it is a whole slide.
    """

    def __init__(self, process: ReadingProcess, found: SlideEntry, is_whole: bool) -> None:
        self._process, self._found, self._is_whole = process, found, is_whole

    @property
    def mpp(self) -> float | None:
        """See `SlideSource`."""
        return self._of_source(attrgetter("mpp"))

    @property
    def assumed_mpp(self) -> float | None:
        """See `SlideSource`."""
        return self._of_source(attrgetter("assumed_mpp"))

    def fingerprint(self) -> str:
        """See `SlideSource`."""
        return self._of_source(methodcaller("fingerprint"))

    def content_sha256(self) -> str:
        """See `SlideSource`."""
        return self._of_source(methodcaller("content_sha256"))

    def images(self, instance_ids: list[str], min_px: int) -> list[bytes]:
        """See `SlideSource`."""
        return self._of_source(methodcaller("images", instance_ids, min_px))

    def blocks(self, preparation: Preparation, batch_size: int, workers: int = 0) -> Iterator[CellBlock]:
        """See `SlideSource`. One block is prefetched."""
        self._run(partial(_begin, preparation, batch_size, workers))
        with closing(prefetch(repeat(partial(self._run, _next)), workers=1, max_pending=2)) as blocks:
            try:
                for block in blocks:
                    if block is None:
                        return
                    yield block
            except CytomilError:  # the slide stays open
                raise
            except BaseException:
                self._process.kill()  # do not wait for the block that is being read
                raise

    def cautions(self) -> list[str]:
        """What a reader must know about the images themselves."""
        return self._of_source(_cautions)

    def placed(
        self, result: SlideResult, names: Sequence[str], scores: np.ndarray, out: Path, cells_csv: bool
    ) -> SlideResult:
        """See `with_places`. The result is unchanged if the slide is not a whole slide."""
        # The names and scores of a large bag would be copied to the other process for nothing.
        return self._of_source(partial(_placed, result, names, scores, out, cells_csv)) if self._is_whole else result

    def with_qc(self, result: SlideResult, out: Path) -> SlideResult:
        """See `cytomil.triage.whole_slide.with_qc`. The result is unchanged if the slide is not a whole slide."""
        return self._of_source(partial(_with_qc, result, out)) if self._is_whole else result

    def _of_source(self, function: Callable[[SlideSource], Any]) -> Any:
        return self._run(partial(_apply, function))

    def _run(self, request: Callable[[_Served], Any]) -> Any:
        return self._process.run(self._found.path, request)


class _Served:
    """The slide that is open in the process, and its blocks of cells once they are requested."""

    source: SlideSource | None = None
    blocks: Iterator[CellBlock] = iter(())


@dataclass(frozen=True)
class Reading:
    """The job of a `ReadingProcess`. Its items are functions, each called with the open slide."""

    device: str = "cpu"

    def start(self, context: JobContext) -> Callable[[Iterable[Callable[[_Served], Any]]], Iterator[Any]]:
        """See `cytomil.workers.Job`."""
        served = _Served()
        return partial(map, lambda request: request(served))


def _open(found: SlideEntry, reading: SlideReading, folder: Path, served: _Served) -> bool:
    os.chdir(folder)  # paths are relative to the folder in which the calling process is
    _close(served)
    served.source = open_source(found, reading)
    return isinstance(served.source, WholeSlide)


def _n_cells(found: SlideEntry, folder: Path, served: _Served) -> int | None:
    os.chdir(folder)
    return n_cells(found)


def _begin(preparation: Preparation, batch_size: int, workers: int, served: _Served) -> None:
    served.blocks = _require_source(served).blocks(preparation, batch_size, workers)


def _next(served: _Served) -> CellBlock | None:
    return next(served.blocks, None)


def _close(served: _Served) -> None:
    close = getattr(served.blocks, "close", None)
    if close is not None:
        close()
    served.source, served.blocks = None, iter(())


def _apply(function: Callable[[SlideSource], Any], served: _Served) -> Any:
    return function(_require_source(served))


def _require_source(served: _Served) -> SlideSource:
    assert served.source is not None
    return served.source


def _cautions(source: SlideSource) -> list[str]:
    return list(source.cautions()) if isinstance(source, CellFolder) else []


def _placed(
    result: SlideResult, names: Sequence[str], scores: np.ndarray, out: Path, cells_csv: bool, source: SlideSource
) -> SlideResult:
    progress(len(names) * _S_PER_CELL)
    assert isinstance(source, WholeSlide)
    return with_places(result, source, names, scores, out, cells_csv)


def _with_qc(result: SlideResult, out: Path, source: SlideSource) -> SlideResult:
    assert isinstance(source, WholeSlide)
    return with_qc(result, source, out)
