"""Several handles on one slide's file, because a handle must not be shared between threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue

from cytomil.slides.open import Slide, open_slide


class Handles:
    """Lends a slide to one thread at a time, and opens it as often as there are threads that want it at once."""

    def __init__(self, path: Path, mpp: float | None = None) -> None:
        self._path, self._mpp = path, mpp
        self._free: SimpleQueue[Slide] = SimpleQueue()

    @contextmanager
    def lend(self) -> Iterator[Slide]:
        """Yield the open slide. Raises as `open_slide` does."""
        try:
            slide = self._free.get_nowait()
        except Empty:
            slide = open_slide(self._path, self._mpp)
        try:
            yield slide
        finally:
            self._free.put(slide)

    def close(self) -> None:
        """Close the handles that nobody holds."""
        while not self._free.empty():
            self._free.get_nowait().close()
