"""The content of a review: the worklist, the pyramid of each slide, its cells with scores, and single cells enlarged."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from cytomil.bags.images import open_image
from cytomil.bags.slide_dir import list_slide_dir
from cytomil.errors import CytomilError, NotFoundError, ReviewError
from cytomil.files import SEAL, is_sealed, read_json
from cytomil.slides import Cutting, Handles, Resolutions
from cytomil.triage.apart import ReadingProcess
from cytomil.triage.pictures import jpeg
from cytomil.triage.sources import SlideEntry, SlideSource, open_source
from cytomil.triage.whole_slide import SlideReading
from cytomil.triage.write import FILES_KEY, SCHEMA, WORKLIST_NAME

TILE_PX = 256
CELL_PX = 320
SURROUNDINGS = 4.0  # the picture of a cell's surroundings is this many cells wide
_CELL_UM = 12.0
_JPEG_QUALITY = 80
_SLIDES_KEPT = 4
_TILES_KEPT = 1024


class KeyCell(BaseModel):
    """One of a slide's most suspicious cells, as triage.json has it. ``x_px``, ``y_px``: centre, None for cell images."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    instance_id: str
    score: float
    x_px: float | None = None
    y_px: float | None = None
    why: str = ""


class ReviewedSlide(BaseModel):
    """A line of the worklist, as triage.json has it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    rank: int
    slide: str
    path: str
    call: str
    probability: float | None
    is_unlike: bool = False
    reason: str = ""
    cautions: tuple[str, ...] = ()
    n_cells: int = 0
    mpp: float | None = None
    sha256: str = ""
    key_instances: tuple[KeyCell, ...] = ()
    to_teach: tuple[KeyCell, ...] = ()
    files: dict[str, str] = {}


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_: str
    created: str
    notice: str
    slides: tuple[ReviewedSlide, ...]
    model_card: dict[str, object]


@dataclass(frozen=True)
class CellPoints:
    """All cells of a slide: ``ids`` (N,), ``numbers`` float32 (N, 4) of x, y, radius in level-0 px, and score."""

    ids: Sequence[str]
    numbers: np.ndarray

    @cached_property
    def index(self) -> dict[str, int]:
        """A cell's place by its id."""
        return {name: i for i, name in enumerate(self.ids)}


@dataclass(frozen=True)
class Size:
    """Size of a slide in level-0 px, and its number of zoom levels: level 0 is one pixel."""

    width: int
    height: int

    @property
    def max_level(self) -> int:
        """The level with all pixels."""
        return math.ceil(math.log2(max(self.width, self.height, 1)))


class Triage:
    """A folder that `cytomil rank` wrote, as it is now. ``before`` is its former state.

    Raises:
        NotFoundError: the folder or its triage.json is missing.
        ReviewError: triage.json cannot be read.
    """

    def __init__(self, folder: Path, before: Triage | None = None) -> None:
        self.folder = folder
        path = folder / WORKLIST_NAME
        if not path.is_file():
            raise NotFoundError(f"{path} does not exist. Rank a folder of slides first: `cytomil rank SLIDE_DIR`.")
        try:
            document = read_json(path)
            if (SEAL in document or FILES_KEY in document) and not is_sealed(document):
                raise ValueError("its checksum does not match: it was altered or damaged")
            self._document = _Document.model_validate(document | {"schema_": document["schema"]})
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise ReviewError(f"{path} does not hold a worklist ({what}). Rank again: `cytomil rank`.") from None
        if self._document.schema_ != SCHEMA:
            raise ReviewError(f"{path} was written by another version of cytomil. Rank again: `cytomil rank`.")
        self.slides = self._document.slides
        self.by_name = {slide.slide: slide for slide in self.slides}
        self._shown: dict[str, ShownSlide] = {}
        self._lock = threading.Lock()
        if before is not None:
            with before._lock:
                self._shown |= before._shown
        names = [] if before is None else list(before.numbers)
        every = dict.fromkeys([*names, *self.by_name])
        self.numbers: dict[str, int] = {name: number for number, name in enumerate(every)}
        """The number of each slide by name. It stays the same if the folder is ranked again."""
        self._names = list(self.numbers)

    @property
    def created(self) -> str:
        """When the folder was ranked: UTC, ISO 8601."""
        return self._document.created

    @property
    def sha256_of(self) -> dict[str, str]:
        """SHA-256 of each slide's content when it was ranked, by name; "" if the slide could not be read."""
        return {slide.slide: slide.sha256 for slide in self.slides}

    @property
    def model_sha256(self) -> str:
        """SHA-256 of the card of the model that ranked."""
        return str(self._document.model_card.get("model_sha256", ""))

    @property
    def score_meaning(self) -> str:
        """The unit of a score, in words that follow a number."""
        return str(self._document.model_card.get("score_meaning", ""))

    def shown(self, number: int) -> ShownSlide:
        """The slide of this number; see `numbers`. Raises `ReviewError` where there is none."""
        slide = self.by_name.get(self._names[number]) if 0 <= number < len(self._names) else None
        if slide is None:
            raise ReviewError("there is no such slide in the worklist.")
        with self._lock:
            kept = self._shown.pop(slide.slide, None)
            if kept is None or kept.slide != slide:
                kept = ShownSlide(slide, self.folder)
            self._shown[slide.slide] = kept
            while len(self._shown) > _SLIDES_KEPT:
                self._shown.pop(next(iter(self._shown)))
            return kept


class FollowedTriage:
    """A folder that `cytomil rank` writes again while it is reviewed, as with ``--watch``. Raises as `Triage` does."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / WORKLIST_NAME
        self._lock = threading.Lock()
        self._stamp = self._read_stamp()
        self._triage = Triage(folder)
        self.fault = ""
        """Why the worklist on disk cannot be read. The one before is then shown."""

    def current(self) -> Triage:
        """The worklist as it is on disk now, or the last one that could be read."""
        with self._lock:
            stamp = self._read_stamp()
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._triage, self.fault = Triage(self._triage.folder, self._triage), ""
                except CytomilError as error:
                    self.fault = str(error)
            return self._triage

    def _read_stamp(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns


class ShownSlide:
    """One slide of the worklist and its pictures. Label and macro images are never read.

    The file may have changed since it was ranked, so it is read in another process.
    """

    def __init__(self, slide: ReviewedSlide, folder: Path) -> None:
        self.slide = slide
        self._folder = folder
        self._tiles: dict[tuple[int, int, int], bytes] = {}
        self._harmful: dict[Path, str] = {}
        self._lock = threading.Lock()

    @cached_property
    def path(self) -> Path:
        """The path of the slide. Raises `ReviewError` if it no longer exists."""
        path = Path(self.slide.path)
        for place in (path, self._folder.parent / path):
            if place.exists():
                return place
        raise ReviewError(
            f"{path} no longer exists. Start `cytomil review` in the folder in which `cytomil rank` was started."
        )

    @property
    def is_whole(self) -> bool:
        """Whether it is a slide or a field with places, and not a folder or file of single cells."""
        return "geojson" in self.slide.files

    @cached_property
    def size(self) -> Size:
        """Its size. Raises `ReviewError` where the slide cannot be opened."""
        width, height = self._apart(_PICTURES, partial(_dimensions, self.path.absolute(), self.slide.mpp))
        return Size(width, height)

    def is_unchanged(self) -> bool:
        """Whether the slide's content is what was ranked. Reads all of it. Raises `ReviewError` where that fails."""
        content = self._apart(_CHECKS, partial(_content_sha256, self.slide.slide, self.path.absolute()))
        return bool(content == self.slide.sha256)

    @cached_property
    def cells(self) -> CellPoints:
        """All its cells, from the GeoJSON that `rank` wrote. Raises `ReviewError` where that is damaged."""
        if not self.is_whole:
            return CellPoints((), np.empty((0, 4), np.float32))
        path = self._folder / self.slide.files["geojson"]
        if self._folder.resolve() not in path.resolve().parents:
            raise ReviewError(f"{path} lies outside of {self._folder}.")
        try:
            return read_cells(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ReviewError(f"{path} cannot be read ({error}). Rank again: `cytomil rank`.") from None

    @property
    def to_teach(self) -> list[KeyCell]:
        """The cells to teach the model, with their places on a whole slide. Raises as `cells` does."""
        if not self.slide.to_teach or not self.is_whole:
            return list(self.slide.to_teach)
        known = [one for one in self.slide.to_teach if one.instance_id in self.cells.index]
        places = self.cells.numbers[[self.cells.index[one.instance_id] for one in known], :2].tolist()
        return [one.model_copy(update={"x_px": x, "y_px": y}) for one, (x, y) in zip(known, places, strict=True)]

    def tile(self, level: int, column: int, row: int) -> bytes:
        """A JPEG of one tile of the pyramid, up to 256 px a side. Raises `ReviewError` where there is none."""
        key = level, column, row
        with self._lock:
            if key in self._tiles:
                return self._tiles[key]
        size = self.size
        if not 0 <= level <= size.max_level:
            raise ReviewError("there is no such tile.")
        scale = 2.0 ** (size.max_level - level)
        width, height = (math.ceil(side / scale) for side in (size.width, size.height))
        left, top = column * TILE_PX, row * TILE_PX
        if column < 0 or row < 0 or left >= width or top >= height:
            raise ReviewError("there is no such tile.")
        picture = self._read(left * scale, top * scale, min(TILE_PX, width - left), min(TILE_PX, height - top), scale)
        with self._lock:
            self._tiles[key] = picture
            while len(self._tiles) > _TILES_KEPT:
                self._tiles.pop(next(iter(self._tiles)))
        return picture

    def cell_picture(self, cell: str, with_surroundings: bool) -> bytes:
        """A JPEG of one cell, or of its surroundings on the slide. Raises `ReviewError` for an unknown cell."""
        if not self.is_whole:
            return self._image_of(cell)
        if cell not in self.cells.index:
            raise ReviewError("there is no such cell.")
        x, y, radius, _ = self.cells.numbers[self.cells.index[cell]]
        um = max(_CELL_UM, 3 * float(radius) * (self.slide.mpp or 0))
        side = um * (SURROUNDINGS if with_surroundings else 1.0) / (self.slide.mpp or 1)
        return self._read(x - side / 2, y - side / 2, CELL_PX, CELL_PX, side / CELL_PX)

    def _read(self, x: float, y: float, width: int, height: int, scale: float) -> bytes:
        region = (float(x), float(y), width, height, float(scale))
        picture: bytes = self._apart(_PICTURES, partial(_region, self.path.absolute(), self.slide.mpp, region))
        return picture

    def _image_of(self, cell: str) -> bytes:
        if cell not in {one.instance_id for one in (*self.slide.key_instances, *self.slide.to_teach)}:
            raise ReviewError("there is no such cell.")
        picture: bytes = self._apart(_PICTURES, partial(_cell_image, self.slide.slide, self.path.absolute(), cell))
        return picture

    def _apart(self, places: threading.Semaphore, request: Callable[[object], Any]) -> Any:
        """The result of a request about this slide in another process, which a hostile file may end.

        Raises `ReviewError`, at once if the slide ended a process before.
        """
        try:
            with places:
                process = ReadingProcess(self._harmful)
                try:
                    result = process.run(self.path, request)
                except CytomilError as error:  # the process is as good as before, or was replaced
                    process.close()
                    raise ReviewError(str(error)) from None
                except BaseException:
                    process.kill()
                    raise
                process.close()
                return result
        except OSError as error:
            raise ReviewError(f"{self.path} cannot be read: {error}") from None


# How many pictures and checks run at the same time. A check reads a whole file, and must not delay pictures.
_PICTURES, _CHECKS = threading.Semaphore(2), threading.Semaphore(1)
# Cells are not cut from slides here, so their size does not matter.
_UNCUT = SlideReading(Cutting(crop_um=12.0, crop_px=64), Resolutions(), Path())


# What follows runs in the other process.
@lru_cache(maxsize=_SLIDES_KEPT)
def _handles(path: Path, mpp: float | None) -> Handles:
    return Handles(path, mpp)


def _dimensions(path: Path, mpp: float | None, _: object) -> tuple[int, int]:
    with _handles(path, mpp).lend() as slide:
        return slide.dimensions


def _region(path: Path, mpp: float | None, region: tuple[float, float, int, int, float], _: object) -> bytes:
    x, y, width, height, scale = region
    with _handles(path, mpp).lend() as slide:
        pixels = slide.read(x, y, width, height, slide.mpp * scale)
    return jpeg(Image.fromarray(pixels), _JPEG_QUALITY)


def _source(name: str, path: Path) -> SlideSource:
    parts = next((one.parts for one in list_slide_dir(path.parent, []).slides if one.path == path), ())
    return open_source(SlideEntry(name, path, parts), _UNCUT)


def _content_sha256(name: str, path: Path, _: object) -> str:
    return _source(name, path).content_sha256()


def _cell_image(name: str, path: Path, cell: str, _: object) -> bytes:
    try:
        (encoded,) = _source(name, path).images([cell], CELL_PX)
        return jpeg(open_image(encoded, cell), _JPEG_QUALITY)
    except (CytomilError, KeyError) as error:
        raise ReviewError(f"the cell cannot be read: {error}") from None


def read_cells(path: Path) -> CellPoints:
    """The detections in a GeoJSON file of `rank`: one feature per line, an octagon around each cell.

    Raises `ValueError`, `KeyError` or `TypeError` for anything else.
    """
    ids, numbers = [], []
    with path.open(encoding="utf-8") as file:
        next(file)  # the collection's own line
        for line in file:
            if not line.startswith('{"type": "Feature"'):
                continue
            feature = json.loads(line.rstrip().removesuffix(","))
            properties = feature["properties"]
            if properties["objectType"] != "detection":
                continue
            ring = np.array(feature["geometry"]["coordinates"][0][:-1], float)
            centre = ring.mean(axis=0)
            radius = np.abs(ring[:, 0] - centre[0]).max()
            ids.append(str(properties["name"]))
            numbers.append((*centre, radius, properties["measurements"]["score"]))
    return CellPoints(ids, np.array(numbers, np.float32).reshape(-1, 4))
