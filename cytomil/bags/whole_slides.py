"""Whole slides as a source of cells: find the slide, find its cells, cut them out. make-bags and rank both come here."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

from cytomil.bags.bag_file import Instance
from cytomil.bags.images import encode_image
from cytomil.bags.slide_dir import slide_file_of
from cytomil.errors import NotFoundError
from cytomil.slides import Cells, Cutting, Slide, is_slide_file, iter_crops
from cytomil.tables import composed


def candidates(root: Path, name: str) -> list[Path]:
    """All that ``name`` may stand for in ``root``: slide files, with or without their suffix, and folders of cell images.

    Names are compared in composed Unicode, whichever form the disk and ``name`` have.
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
    # The folder beside an .mrxs slide bears its name; it holds no cell images but the slide's own parts.
    if any(path.suffix.lower() == ".mrxs" for path in files):
        folders = []
    return files + folders


def locate(root: Path, name: str) -> Path:
    """What ``name`` stands for in ``root``: a slide file with or without its suffix, or a folder of cell images.

    Raises `NotFoundError` where there is nothing of that name, or more than one thing.
    """
    found = candidates(root, name)
    if not found:
        raise NotFoundError(f"{root / name}: no such folder or slide file.{_proposal(root, name)} Correct its line.")
    if len(found) > 1:
        either = " or ".join(f"the folder {path.name}" if path.is_dir() else path.name for path in found)
        raise NotFoundError(
            f"{root / name} is {either}. Write a file's suffix in its line; where that does not tell them apart, rename one."
        )
    return slide_file_of(found[0]) if found[0].is_dir() else found[0]


def _proposal(root: Path, name: str) -> str:
    """The entry most like ``name``; spreadsheets turn 007 into 7."""
    names = [composed(path.name) for path in sorted(root.iterdir()) if is_slide_file(path) or path.is_dir()]
    padded = [
        entry for entry in names if Path(entry).stem.lstrip("0") == name.lstrip("0") or entry.lower() == name.lower()
    ]
    close = (padded or difflib.get_close_matches(name, names, n=1))[:1]
    return f" Did you mean {close[0]}?" if close else ""


def cell_id(x: float, y: float) -> str:
    """A cell's name: where its centre lies, in level-0 px."""
    return f"x{x:.0f}y{y:.0f}"


def cut_cells(slide: Slide, cells: Cells, cutting: Cutting) -> Iterator[Instance]:
    """Yield the cells' crops in the order of ``cells``, each encoded once; one is in memory at a time.

    Names count from the corner of the slide's picture, as QuPath does; ``coords`` count in the file's own level 0, as
    TRIDENT and CLAM do. They differ where the slide has an `Slide.origin`.

    Raises `SlideUnreadableError` where the file turns out damaged.
    """
    crops = iter_crops(slide, cells, crop_um=cutting.crop_um, crop_px=cutting.crop_px)
    for (centre_x, centre_y), (x, y, pixels) in zip(cells.centres, crops, strict=True):
        coords = x + slide.origin[0], y + slide.origin[1]
        yield Instance(cell_id(centre_x, centre_y), encode_image(pixels), coords)
