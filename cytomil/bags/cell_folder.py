"""Lists the cell images of a folder. Every other file is litter, a note, or is listed with a reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cytomil.bags.own_output import is_own_output
from cytomil.errors import why_unreadable
from cytomil.litter import is_litter, is_note
from cytomil.pixels import PICTURE_KINDS
from cytomil.progress import Problem
from cytomil.slides import WHOLE_SLIDE_ONLY_SUFFIXES
from cytomil.text import printable

MIN_CELLS = 2
"""A slide with fewer cells is used neither for ranking nor for training."""

_BAG_SUFFIXES = frozenset({".h5", ".hdf5"})


@dataclass(frozen=True)
class CellFiles:
    """The files of a folder of cells, at any depth and through links, in a fixed order.

    Args:
        files: every file that may be a cell, whatever its name. Only decoding can decide it.
        left_out: files that cannot be cells, named by their path in the folder, with the reason.
    """

    files: tuple[Path, ...]
    left_out: tuple[Problem, ...]

    def why_none(self) -> str:
        """The rest of a message that begins with the folder's name: it holds no cells, and why."""
        if not self.left_out:
            return f"holds no cell images ({PICTURE_KINDS})."
        first, n = self.left_out[0], len(self.left_out)
        return f"holds no cell images; {first.where} is {first.reason}" + (f" So are {n - 1} more." if n > 1 else "")


def list_cell_files(folder: Path) -> CellFiles:
    """List a folder of cells. Litter, notes and the output of cytomil are ignored silently."""
    files: list[Path] = []
    left_out: list[Problem] = []

    def leave_out(path: Path, reason: str) -> None:
        left_out.append(Problem(printable(path.relative_to(folder).as_posix()), reason))

    def failed(error: OSError) -> None:
        path = Path(error.filename)
        leave_out(path, f"a folder that cannot be listed: {why_unreadable(path, error)}")

    for path in _walk(folder, failed):
        if path.suffix.lower() in WHOLE_SLIDE_ONLY_SUFFIXES:
            leave_out(path, "a whole slide, not a cell. Put it directly into the folder of slides.")
        elif path.suffix.lower() in _BAG_SUFFIXES:
            leave_out(path, "an HDF5 file, not a cell. Put a bag file directly into the folder of slides.")
        elif path.is_file():
            files.append(path)
        elif path.is_symlink():
            leave_out(path, "a link to a file that does not exist. Correct the link or remove it.")
        else:
            leave_out(path, "not a regular file.")
    return CellFiles(tuple(sorted(files)), tuple(sorted(left_out, key=lambda problem: problem.where)))


def _walk(folder: Path, failed: Callable[[OSError], None]) -> Iterator[Path]:
    """Every file below ``folder``. Links to folders are followed, and each real folder is read once."""
    # A link to a parent folder would add the cells of other slides.
    entered = {_identity(above) for above in folder.resolve().parents}
    for place, folders, names in os.walk(folder, onerror=failed, followlinks=True):
        if _identity(Path(place)) in entered:
            folders.clear()
            continue
        entered.add(_identity(Path(place)))
        inside = Path(place)
        folders[:] = sorted(name for name in folders if not is_litter(name) and not is_own_output(inside / name))
        yield from (inside / name for name in sorted(names) if not is_litter(name) and not is_note(name))


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino
