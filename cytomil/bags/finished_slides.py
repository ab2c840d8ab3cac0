"""Slides that make-bags has finished, with a key of their input, so that a later run does not read them again."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cytomil.bags.bag_file import open_bag
from cytomil.bags.cell_folder import list_cell_files
from cytomil.bags.made import CARDS_FOLDER, QC_FOLDER
from cytomil.cards import Card, Text
from cytomil.errors import BagFileError
from cytomil.files import is_sealed, read_json, safe_name, sha256_of_json, write_json_card
from cytomil.progress import Problem
from cytomil.provenance import library_versions
from cytomil.slides import Cutting, companions_of

SCHEMA = "cytomil.finished-slide/1"
CELLS_VERSION = 1
"""Raise it with every change that gives other cells, coordinates or messages for the same slide and cutting."""
_LIBRARIES = (
    "numpy",
    "scipy",
    "scikit-image",
    "opencv-python-headless",
    "pillow",
    "simplejpeg",
    "openslide-python",
    "openslide-bin",
)
_HASHED_BYTES = 1 << 20


@dataclass(frozen=True)
class FinishedSlide:
    """The result of reading one slide.

    Args:
        sha256: of its bag; empty if there is no bag.
        reason: why there is no bag.
        n_at_edge: number of cells left out at the edge of the scanned area.
        has_picture: whether a picture shows the cells that were found.
        assumed_mpp: the resolution in µm per pixel if it comes from `Resolutions.fallback`; None otherwise.
        problems: cells that could not be used.
    """

    sha256: str = ""
    reason: str = ""
    n_at_edge: int = 0
    has_picture: bool = False
    assumed_mpp: float | None = None
    problems: tuple[Problem, ...] = ()


class _FinishedCard(Card):
    """A finished slide's card."""

    key: Text
    finished: FinishedSlide


@dataclass(frozen=True)
class FinishedSlides:
    """A folder with the bags, QC pictures and cards of finished slides. The output of make-bags is such a folder."""

    folder: Path

    def bag(self, slide: str) -> Path:
        """Path of a slide's bag."""
        return self.folder / f"{slide}.h5"

    def picture(self, slide: str) -> Path:
        """Path of the picture that shows which cells were found."""
        return self.folder / QC_FOLDER / f"{safe_name(slide)}.jpg"

    def read(self, slide: str, key: str, fallback_mpp: float | None) -> FinishedSlide | None:
        """The slide that was finished with this key. None if there is none or its files are incomplete."""
        try:
            document = read_json(self._card(slide))
            card = _FinishedCard.model_validate(document)
            finished = card.finished
            if not is_sealed(document) or card.key != key or finished.assumed_mpp not in (None, fallback_mpp):
                return None
            if finished.sha256 and open_bag(self.bag(slide)).sha256 != finished.sha256:
                return None
        except (OSError, ValueError, BagFileError):  # a card with a wrong field raises ValueError
            return None
        return None if finished.has_picture and not self.picture(slide).is_file() else finished

    def write(self, slide: str, key: str, finished: FinishedSlide) -> None:
        """Record a slide as finished. Its files must exist already."""
        write_json_card(self._card(slide), {"schema": SCHEMA, "key": key, "finished": asdict(finished)})

    def _card(self, slide: str) -> Path:
        return self.folder / CARDS_FOLDER / f"{safe_name(slide)}.json"


def unfinished(out: Path) -> Path:
    """The folder in which a run keeps finished slides until all are finished.

    It lies beside ``out``, because DVC deletes the outputs of a stage before it runs. It is hidden, so that it is not taken
    for a slide.
    """
    out = out.resolve()
    return out.with_name(f".{out.name}.unfinished")


def put(source: Path, target: Path) -> None:
    """Link a finished file to ``target``, or copy it if the disk has no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


@dataclass(frozen=True)
class SlideFiles:
    """The files of a slide: their total size in bytes, and a ``state`` that changes with their content."""

    size: int
    state: list[Any]


def files_of(place: Path, parts: Sequence[Path] = ()) -> SlideFiles:
    """The files of a slide (its ``parts`` and companions included) or of a folder of cells. Raises OSError.

    The state holds names, sizes, times and the first megabyte of a slide. The whole content is not read, because every
    change of a file changes its time.
    """
    if place.is_dir():
        listed = list_cell_files(place)
        files, extra = list(listed.files), [[one.where, one.reason] for one in listed.left_out]
    else:
        files = sorted({place, *parts, *(file for one in companions_of(place) for file in _files_in(one))})
        with place.open("rb") as file:
            extra = [["first bytes", hashlib.sha256(file.read(_HASHED_BYTES)).hexdigest()]]
    states = [(file, file.stat()) for file in files]
    stats = [
        [os.fsencode(f.relative_to(place.parent)).hex(), s.st_size, s.st_mtime_ns, s.st_ctime_ns] for f, s in states
    ]
    return SlideFiles(sum(status.st_size for _, status in states), [place.is_dir(), stats, extra])


def _files_in(place: Path) -> list[Path]:
    return [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]


def key_of(slide: str, files: SlideFiles, cutting: Cutting | None, given_mpp: float | None) -> str:
    """SHA-256 over all that determines a slide's cells: files, cutting, resolution, `CELLS_VERSION` and libraries.

    ``cutting`` is None for a folder of cells. Label and patient are not included, because they can be changed in a bag
    without reading the slide again.
    """
    cut = None if cutting is None else cutting.to_json()
    return sha256_of_json([SCHEMA, slide, files.state, cut, given_mpp, CELLS_VERSION, library_versions(*_LIBRARIES)])
