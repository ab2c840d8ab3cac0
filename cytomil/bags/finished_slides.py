"""Slides that make-bags has finished, each with what it was made from, so that a run reads none of them again."""

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
"""Raise it with every change that gives other cells, coordinates or reasons for the same slide and cutting."""
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
    """What became of one slide.

    ``sha256`` is its bag's, empty where there is no bag for the ``reason`` given. ``n_at_edge`` cells were left out.
    ``assumed_mpp`` is the resolution that only the user vouches for, by `Resolutions.fallback`; None where it was not
    needed. ``problems`` are cells that could not be used.
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
    """A folder of finished slides' bags, QC pictures and cards; a folder of bags is one."""

    folder: Path

    def bag(self, slide: str) -> Path:
        """Where a slide's bag lies."""
        return self.folder / f"{slide}.h5"

    def picture(self, slide: str) -> Path:
        """Where the picture lies that shows which cells were found."""
        return self.folder / QC_FOLDER / f"{safe_name(slide)}.jpg"

    def read(self, slide: str, key: str, fallback_mpp: float | None) -> FinishedSlide | None:
        """A slide that was finished under this key, if its files are whole; None where it must be read."""
        try:
            document = read_json(self._card(slide))
            card = _FinishedCard.model_validate(document)
            finished = card.finished
            if not is_sealed(document) or card.key != key or finished.assumed_mpp not in (None, fallback_mpp):
                return None
            if finished.sha256 and open_bag(self.bag(slide)).sha256 != finished.sha256:
                return None
        except (OSError, ValueError, BagFileError):  # a card with a wrong field is a ValueError
            return None
        return None if finished.has_picture and not self.picture(slide).is_file() else finished

    def write(self, slide: str, key: str, finished: FinishedSlide) -> None:
        """Count a slide as finished; its files are there already."""
        write_json_card(self._card(slide), {"schema": SCHEMA, "key": key, "finished": asdict(finished)})

    def _card(self, slide: str) -> Path:
        return self.folder / CARDS_FOLDER / f"{safe_name(slide)}.json"


def unfinished(out: Path) -> Path:
    """The folder in which a run keeps its finished slides until it has done them all.

    It lies beside ``out``, because DVC deletes a stage's outputs before it runs; and it is hidden, so that it is no slide.
    """
    out = out.resolve()
    return out.with_name(f".{out.name}.unfinished")


def put(source: Path, target: Path) -> None:
    """Let a finished file lie in a second place. It costs no space where the disk has hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


@dataclass(frozen=True)
class SlideFiles:
    """The files that hold a slide: their size in bytes, and a ``state`` that another content does not have."""

    size: int
    state: list[Any]


def files_of(place: Path, parts: Sequence[Path] = ()) -> SlideFiles:
    """Look at a slide's file, its ``parts`` and companions, or at a folder of cells. Raises OSError.

    Names, sizes, times and each slide's first megabyte are looked at: whoever changes a file changes its time.
    """
    if place.is_dir():
        listed = list_cell_files(place)
        files, seen = list(listed.files), [[one.where, one.reason] for one in listed.left_out]
    else:
        files = sorted({place, *parts, *(file for one in companions_of(place) for file in _files_in(one))})
        with place.open("rb") as file:
            seen = [["first bytes", hashlib.sha256(file.read(_HASHED_BYTES)).hexdigest()]]
    states = [(file, file.stat()) for file in files]
    told = [
        [os.fsencode(f.relative_to(place.parent)).hex(), s.st_size, s.st_mtime_ns, s.st_ctime_ns] for f, s in states
    ]
    return SlideFiles(sum(status.st_size for _, status in states), [place.is_dir(), told, seen])


def _files_in(place: Path) -> list[Path]:
    return [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]


def key_of(slide: str, files: SlideFiles, cutting: Cutting | None, given_mpp: float | None) -> str:
    """Names all that shapes a slide's cells: its files, how it is cut (None: a folder of cells), `CELLS_VERSION`
    and libraries.

    The label and the patient are not among it: they are written on a bag without reading the slide again.
    """
    cut = None if cutting is None else cutting.to_json()
    return sha256_of_json([SCHEMA, slide, files.state, cut, given_mpp, CELLS_VERSION, library_versions(*_LIBRARIES)])
