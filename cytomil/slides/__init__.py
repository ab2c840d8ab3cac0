"""Open a whole slide, find its cells, and crop them.

- ``open`` reads any region at any resolution.
- ``resolution`` groups the files that belong to one slide, chooses its resolution, and recognises areas that were not
  scanned.
- ``tiles`` finds the cells of a tile, combines those of all tiles, and draws them.
- ``find`` finds the cells of a whole slide and crops them for the encoder.

OpenSlide, SciPy and scikit-image are imported when first used.
"""

from cytomil.slides.find import CellFinding, Cutting, find_cells, iter_cells, iter_crops, require_enough_cells
from cytomil.slides.open import SLIDE_SUFFIXES, WHOLE_SLIDE_ONLY_SUFFIXES, Handles, Slide, is_slide_file, open_slide
from cytomil.slides.resolution import Resolutions, companions_of, read_resolutions
from cytomil.slides.tiles import Cells, qc_thumbnail

__all__ = [
    "SLIDE_SUFFIXES",
    "WHOLE_SLIDE_ONLY_SUFFIXES",
    "CellFinding",
    "Cells",
    "Cutting",
    "Handles",
    "Resolutions",
    "Slide",
    "companions_of",
    "find_cells",
    "is_slide_file",
    "iter_cells",
    "iter_crops",
    "open_slide",
    "qc_thumbnail",
    "read_resolutions",
    "require_enough_cells",
]
