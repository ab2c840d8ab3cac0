"""Read cells from whole slides and folders of cell images, and keep finished slides for a later run."""

from __future__ import annotations

import difflib
import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cytomil.bags.bag_file import BagInfo, Instance, open_bag, write_bag
from cytomil.bags.images import encode_image, list_cell_files, read_image
from cytomil.bags.manifest import CARDS_FOLDER, QC_FOLDER
from cytomil.bags.slide_dir import slide_file_of
from cytomil.cards import Card, Text, library_versions
from cytomil.errors import (
    BagFileError,
    ImageUnreadableError,
    NoCellsError,
    NotFoundError,
    ResolutionError,
    SlideUnreadableError,
)
from cytomil.files import is_sealed, read_json, safe_name, sha256_of_json, write_bytes, write_json_card
from cytomil.progress import Problem
from cytomil.slides import (
    Cells,
    Cutting,
    Resolutions,
    Slide,
    companions_of,
    find_cells,
    is_slide_file,
    iter_crops,
    qc_thumbnail,
    require_enough_cells,
)
from cytomil.tables import composed
from cytomil.text import printable
from cytomil.workers import JobContext

SCHEMA = "cytomil.finished-slide/1"
CELLS_VERSION = 1
"""Raise it with every change of the cells, coordinates or messages for the same slide and cutting."""
CELL_LIBRARIES = (
    "numpy",
    "scipy",
    "scikit-image",
    "opencv-python-headless",
    "pillow",
    "simplejpeg",
    "openslide-python",
    "openslide-bin",
)
"""Libraries that affect which cells are found in a slide, and their pixels."""
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
        """The slide finished with this key. None if there is none or its files are incomplete."""
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

    It is beside ``out``, because DVC deletes the outputs of a stage before it runs. It is hidden, so that it does not
    count as a slide.
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


def files_of(path: Path, parts: Sequence[Path] = ()) -> SlideFiles:
    """The files of a slide (its ``parts`` and companions included) or of a folder of cells. Raises OSError.

    The state holds names, sizes, times and the first megabyte of a slide. The whole content is not read, because every
    change of a file changes its time.
    """
    if path.is_dir():
        listed = list_cell_files(path)
        files, extra = list(listed.files), [[one.where, one.reason] for one in listed.left_out]
    else:
        files = sorted({path, *parts, *(file for companion in companions_of(path) for file in _files_in(companion))})
        with path.open("rb") as file:
            extra = [["first bytes", hashlib.sha256(file.read(_HASHED_BYTES)).hexdigest()]]
    states = [(file, file.stat()) for file in files]
    stats = [
        [os.fsencode(f.relative_to(path.parent)).hex(), s.st_size, s.st_mtime_ns, s.st_ctime_ns] for f, s in states
    ]
    return SlideFiles(sum(status.st_size for _, status in states), [path.is_dir(), stats, extra])


def _files_in(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def key_of(slide: str, files: SlideFiles, cutting: Cutting | None, given_mpp: float | None) -> str:
    """SHA-256 over all that determines a slide's cells: files, cutting, resolution, `CELLS_VERSION` and libraries.

    ``cutting`` is None for a folder of cells. Label and patient are not included, because they can be changed in a bag
    without reading the slide again.
    """
    cut = None if cutting is None else cutting.to_json()
    return sha256_of_json(
        [SCHEMA, slide, files.state, cut, given_mpp, CELLS_VERSION, library_versions(*CELL_LIBRARIES)]
    )


def candidates(root: Path, name: str) -> list[Path]:
    """All entries of ``root`` that ``name`` may mean: slide files, with or without suffix, and folders of cell images.

    Names are compared in composed Unicode (NFC), because disks and spreadsheets use different forms.
    """
    name = composed(name)
    files, folders = [], []
    for path in sorted(root.iterdir()):
        if is_slide_file(path) and name in (composed(path.name), composed(path.stem)):
            files.append(path)
        elif path.is_dir() and not path.name.startswith(".") and composed(path.name) == name:
            folders.append(path)
    whole = [path for path in files if composed(path.name) == name]
    if whole:
        return whole
    # The folder beside an .mrxs slide has its name. It holds parts of the slide, not cell images.
    if any(path.suffix.lower() == ".mrxs" for path in files):
        folders = []
    return files + folders


def locate(root: Path, name: str) -> Path:
    """The entry of ``root`` that ``name`` means: a slide file, with or without suffix, or a folder of cell images.

    Raises `NotFoundError` if there is no such entry, or more than one.
    """
    found = candidates(root, name)
    if not found:
        raise NotFoundError(f"{root / name}: no such folder or slide file.{_suggestion(root, name)} Correct its line.")
    if len(found) > 1:
        either = " or ".join(f"the folder {path.name}" if path.is_dir() else path.name for path in found)
        raise NotFoundError(
            f"{root / name} is {either}. Write the file's suffix in the labels file, or rename one of them."
        )
    return slide_file_of(found[0]) if found[0].is_dir() else found[0]


def _suggestion(root: Path, name: str) -> str:
    """A hint at the entry most similar to ``name``. Leading zeros are ignored, because spreadsheets turn 007 into 7."""
    names = [composed(path.name) for path in sorted(root.iterdir()) if is_slide_file(path) or path.is_dir()]
    padded = [
        entry for entry in names if Path(entry).stem.lstrip("0") == name.lstrip("0") or entry.lower() == name.lower()
    ]
    close = (padded or difflib.get_close_matches(name, names, n=1))[:1]
    return f" Did you mean {close[0]}?" if close else ""


def cell_id(x: float, y: float) -> str:
    """The name of a cell, from its centre in level-0 px."""
    return f"x{x:.0f}y{y:.0f}"


def cut_cells(slide: Slide, cells: Cells, cutting: Cutting) -> Iterator[Instance]:
    """Yield the encoded crops of the cells in the order of ``cells``. One crop is in memory at a time.

    Names use coordinates from the corner of the slide's picture, as QuPath does. ``coords`` use the file's own level 0, as
    TRIDENT and CLAM do. They differ if the slide has a `Slide.origin`.

    Raises `SlideUnreadableError` if the file is damaged.
    """
    crops = iter_crops(slide, cells, crop_um=cutting.crop_um, crop_px=cutting.crop_px)
    for (centre_x, centre_y), (x, y, pixels) in zip(cells.centres, crops, strict=True):
        coords = x + slide.origin[0], y + slide.origin[1]
        yield Instance(cell_id(centre_x, centre_y), encode_image(pixels), coords)


_SLIDE_ERRORS = (NotFoundError, SlideUnreadableError, ResolutionError)


@dataclass(frozen=True)
class SlideToRead:
    """One slide to read: its path, the metadata of its bag, and its key (see `key_of`).

    Without a key, the slide is not recorded as finished.
    """

    path: Path
    info: BagInfo
    key: str | None


@dataclass(frozen=True)
class ReadingSlides:
    """The job that reads slides. Bags hold all readable cells; cells that slides have in common are removed later."""

    finished: FinishedSlides
    resolutions: Resolutions
    device: str = "cpu"

    def start(self, context: JobContext) -> Callable[[Iterable[SlideToRead]], Iterator[FinishedSlide]]:
        """See `cytomil.workers.Job`."""
        return partial(map, partial(self._finish, context.cores))

    def _finish(self, cores: int, one: SlideToRead) -> FinishedSlide:
        """Read one slide. A slide that cannot be read is not recorded as finished, so that the next run tries again."""
        try:
            done = self._read_folder(one) if one.path.is_dir() else self._read_whole_slide(cores, one)
        except _SLIDE_ERRORS as error:
            return FinishedSlide(reason=str(error), has_picture=self.finished.picture(one.info.bag_id).is_file())
        if one.key is not None:
            self.finished.write(one.info.bag_id, one.key, done)
        return done

    def _read_folder(self, one: SlideToRead) -> FinishedSlide:
        problems: list[Problem] = []
        sha256, _ = write_bag(self.finished.bag(one.info.bag_id), one.info, folder_cells(one.path, problems))
        return FinishedSlide(sha256, problems=tuple(problems))

    def _read_whole_slide(self, cores: int, one: SlideToRead) -> FinishedSlide:
        """Write the bag and the picture of the cells found. A slide with too few cells counts as finished too."""
        name, cutting = one.info.bag_id, one.info.cutting
        assert cutting is not None
        self.finished.picture(name).unlink(missing_ok=True)
        with self.resolutions.open(one.path) as slide:
            is_assumed = slide.mpp_source == "given" and self.resolutions.of(one.path) is None
            cells = find_cells(one.path, cutting.finding, slide.mpp, cores, crop_um=cutting.crop_um)
            buffer = io.BytesIO()
            qc_thumbnail(slide, cells).save(buffer, "JPEG", quality=85)
            write_bytes(self.finished.picture(name), buffer.getvalue())
            done = FinishedSlide(has_picture=True, assumed_mpp=slide.mpp if is_assumed else None)
            try:
                require_enough_cells(one.path, cells, cutting.finding)
            except NoCellsError as error:
                return replace(done, reason=str(error))
            sha256, _ = write_bag(self.finished.bag(name), one.info, cut_cells(slide, cells.whole, cutting))
        return replace(done, sha256=sha256, n_at_edge=int(cells.at_edge.sum()))


def folder_cells(folder: Path, problems: list[Problem]) -> Iterator[Instance]:
    """The readable cells of a slide's ``folder`` in the order of their names, without byte-identical copies.

    Files that cannot be used are added to ``problems``. Raises `NotFoundError` if the folder holds no images.
    """
    listed = list_cell_files(folder)
    if not listed.files:
        raise NotFoundError(f"{folder} {listed.why_none()}")
    name = printable(folder.name)
    problems += [Problem(f"{name}/{one.where}", one.reason) for one in listed.left_out]
    seen: set[bytes] = set()
    for file in listed.files:
        of_folder = printable(file.relative_to(folder).as_posix())
        source = cell_source(folder, of_folder)
        try:
            image = read_image(file, source)
        except ImageUnreadableError as error:
            problems.append(Problem(source, str(error).removeprefix(f"{source}: ")))
            continue
        digest = hashlib.sha256(image).digest()
        if digest not in seen:
            seen.add(digest)
            yield Instance(of_folder, image, source=source)


def cell_source(folder: Path, instance_id: str) -> str:
    """The source of a cell from a folder, as used in bags and problems."""
    return f"{printable(folder.name)}/{instance_id}"
