"""Whole slides as a source of cells: find the slide, find its cells, cut them out. make-bags and rank both come here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cytomil.bags.bag_file import Instance
from cytomil.bags.images import encode_image
from cytomil.bags.slide_dir import slide_file_of
from cytomil.errors import NotFoundError
from cytomil.slides import Cells, Cutting, Slide, is_slide_file, iter_crops


def locate(root: Path, name: str) -> Path:
    """What ``name`` stands for in ``root``: a slide file with or without its suffix, or a folder of cell images.

    Raises `NotFoundError` where there is nothing of that name, or several slides of it.
    """
    exact = root / name
    if is_slide_file(exact):
        return exact
    # The folder beside an .mrxs slide bears its name; it holds no cell images but the slide's own parts.
    slides = sorted(path for path in root.glob("*") if path.stem == name and is_slide_file(path))
    if exact.is_dir() and not any(path.suffix.lower() == ".mrxs" for path in slides):
        return slide_file_of(exact)
    if len(slides) > 1:
        raise NotFoundError(f"{exact} is {' or '.join(path.name for path in slides)}. Write the suffix in its line.")
    if not slides:
        raise NotFoundError(f"{exact}: no such folder or slide file. Correct its line in the labels file.")
    return slides[0]


def cell_id(x: float, y: float) -> str:
    """A cell's name: where its centre lies, in level-0 px."""
    return f"x{x:.0f}y{y:.0f}"


def cut_cells(slide: Slide, cells: Cells, cutting: Cutting) -> Iterator[Instance]:
    """Yield the cells' crops in the order of ``cells``, each encoded once; one is in memory at a time.

    Raises `SlideUnreadableError` where the file turns out damaged.
    """
    crops = iter_crops(slide, cells, crop_um=cutting.crop_um, crop_px=cutting.crop_px)
    for (centre_x, centre_y), (x, y, pixels) in zip(cells.centres, crops, strict=True):
        yield Instance(cell_id(centre_x, centre_y), encode_image(pixels), (x, y))
