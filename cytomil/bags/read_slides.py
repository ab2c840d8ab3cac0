"""The job of reading labelled slides: each becomes a finished slide in a folder, whoever works on the others."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from cytomil.bags.bag_file import BagInfo, Instance, write_bag
from cytomil.bags.cell_folder import list_cell_files
from cytomil.bags.finished_slides import FinishedSlide, FinishedSlides
from cytomil.bags.images import read_image
from cytomil.bags.whole_slides import cut_cells
from cytomil.errors import (
    ImageUnreadableError,
    NoCellsError,
    NotFoundError,
    ResolutionError,
    SlideUnreadableError,
)
from cytomil.files import write_bytes
from cytomil.progress import Problem
from cytomil.slides import Resolutions, find_cells, qc_thumbnail, require_enough_cells
from cytomil.text import printable
from cytomil.workers import Place

_FAULTS_OF_A_SLIDE = (NotFoundError, SlideUnreadableError, ResolutionError)


@dataclass(frozen=True)
class SlideToRead:
    """One slide: where it lies, what its bag is to say, and the key under which it counts as finished.

    Without a key it never does.
    """

    place: Path
    info: BagInfo
    key: str | None


@dataclass(frozen=True)
class ReadingSlides:
    """The job. Bags hold all of a slide's readable cells; what slides have in common is for later."""

    finished: FinishedSlides
    resolutions: Resolutions
    device: str = "cpu"

    def start(self, place: Place) -> Callable[[Iterable[SlideToRead]], Iterator[FinishedSlide]]:
        """See `cytomil.workers.Job`."""
        return partial(map, partial(self._finish, place.cores))

    def _finish(self, cores: int, one: SlideToRead) -> FinishedSlide:
        """Read one slide. One that cannot be read is told with its reason, and not kept: the next run tries again."""
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
        """Write the bag, and the picture that shows which cells were found. A slide of too few cells is finished too."""
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
    """The readable cells of a slide's ``folder``, in the order of their names; byte-identical ones once.

    What cannot be used goes to ``problems``. Raises `NotFoundError` where the folder holds no images.
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
    """Where a folder's cell came from, as its bag says and as problems name it."""
    return f"{printable(folder.name)}/{instance_id}"
