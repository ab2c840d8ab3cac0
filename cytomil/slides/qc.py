"""The picture that shows a person which cells were found."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from cytomil.slides.open import Slide
from cytomil.slides.tiles import Cells

_EDGE_COLOUR = (120, 120, 120)
_CELL_COLOUR = (0, 230, 0)  # more saturated than any stain, so thin rings show on dark nuclei and pale cytoplasm
_MARKED_COLOUR = (220, 0, 0)
_LEAST_MARKED_RADIUS = 9  # px of the picture; a cell of two pixels would be lost under its own ring
_FONT_PX = 16


def qc_thumbnail(slide: Slide, cells: Cells, max_px: int = 1600, marked: Sequence[int] = ()) -> Image.Image:
    """Return an RGB picture of the slide with every cell ringed, its longer side at most ``max_px``.

    Cells at the edge of what was scanned have grey rings.
    ``marked``: indices into ``cells``, the most suspicious first; they get a bold ring and their rank from 1. The
    picture is made for a slide without cells too. Raises `SlideUnreadableError`.
    """
    picture = Image.fromarray(slide.thumbnail(max_px))
    draw = ImageDraw.Draw(picture)
    scale = picture.width / slide.dimensions[0]
    for (x, y), radius, at_edge in zip(cells.centres * scale, cells.radii * scale, cells.at_edge, strict=True):
        colour = _EDGE_COLOUR if at_edge else _CELL_COLOUR
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=1)
    font = ImageFont.load_default(_FONT_PX)
    # The first ranks last, so that where rings overlap the most suspicious is on top.
    for rank, index in reversed(list(enumerate(marked, start=1))):
        x, y = cells.centres[index] * scale
        radius = max(_LEAST_MARKED_RADIUS, cells.radii[index] * scale + 2)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=_MARKED_COLOUR, width=3)
        # Beside the ring, but inside the picture for cells at its right or top edge.
        text_x = min(x + radius + 2, picture.width - draw.textlength(str(rank), font) - 2)
        text_y = max(0, y - radius - _FONT_PX / 2)
        draw.text((text_x, text_y), str(rank), _MARKED_COLOUR, font, stroke_width=2, stroke_fill="white")
    return picture
