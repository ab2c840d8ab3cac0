"""Reads cells from whole slides and from folders of cell images, for make-bags and rank."""

from __future__ import annotations

import difflib
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from cytomil.bags.bag_file import BagInfo, Instance, write_bag
from cytomil.bags.cell_folder import list_cell_files
from cytomil.bags.finished_slides import FinishedSlide, FinishedSlides
from cytomil.bags.images import encode_image, read_image
from cytomil.bags.slide_dir import slide_file_of
from cytomil.errors import (
    ImageUnreadableError,
    NoCellsError,
    NotFoundError,
    ResolutionError,
    SlideUnreadableError,
)
from cytomil.files import write_bytes
from cytomil.progress import Problem
from cytomil.slides import (
    Cells,
    Cutting,
    Resolutions,
    Slide,
    find_cells,
    is_slide_file,
    iter_crops,
    qc_thumbnail,
    require_enough_cells,
)
from cytomil.tables import composed
from cytomil.text import printable
from cytomil.workers import JobContext


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
        raise NotFoundError(f"{root / name}: no such folder or slide file.{_proposal(root, name)} Correct its line.")
    if len(found) > 1:
        either = " or ".join(f"the folder {path.name}" if path.is_dir() else path.name for path in found)
        raise NotFoundError(
            f"{root / name} is {either}. Write the file's suffix in the labels file, or rename one of them."
        )
    return slide_file_of(found[0]) if found[0].is_dir() else found[0]


def _proposal(root: Path, name: str) -> str:
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


_FAULTS_OF_A_SLIDE = (NotFoundError, SlideUnreadableError, ResolutionError)


@dataclass(frozen=True)
class SlideToRead:
    """One slide to read: its path, the metadata of its bag, and its key (see `key_of`).

    Without a key, the slide is not recorded as finished.
    """

    place: Path
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
            done = self._read_folder(one) if one.place.is_dir() else self._read_whole_slide(cores, one)
        except _FAULTS_OF_A_SLIDE as error:
            return FinishedSlide(reason=str(error), has_picture=self.finished.picture(one.info.bag_id).is_file())
        if one.key is not None:
            self.finished.write(one.info.bag_id, one.key, done)
        return done

    def _read_folder(self, one: SlideToRead) -> FinishedSlide:
        problems: list[Problem] = []
        sha256, _ = write_bag(self.finished.bag(one.info.bag_id), one.info, folder_cells(one.place, problems))
        return FinishedSlide(sha256, problems=tuple(problems))

    def _read_whole_slide(self, cores: int, one: SlideToRead) -> FinishedSlide:
        """Write the bag and the picture of the cells found. A slide with too few cells counts as finished too."""
        name, cutting = one.info.bag_id, one.info.cutting
        assert cutting is not None
        self.finished.picture(name).unlink(missing_ok=True)
        with self.resolutions.open(one.place) as slide:
            is_assumed = slide.mpp_source == "given" and self.resolutions.of(one.place) is None
            cells = find_cells(one.place, cutting.finding, slide.mpp, cores, crop_um=cutting.crop_um)
            buffer = io.BytesIO()
            qc_thumbnail(slide, cells).save(buffer, "JPEG", quality=85)
            write_bytes(self.finished.picture(name), buffer.getvalue())
            done = FinishedSlide(has_picture=True, assumed_mpp=slide.mpp if is_assumed else None)
            try:
                require_enough_cells(one.place, cells, cutting.finding)
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
