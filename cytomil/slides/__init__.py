"""Open a whole slide, find its cells, crop them.

``open`` reads any region at any resolution, ``resolution`` knows which µm per pixel to believe, ``detect`` finds cells in
one tile, ``find`` in a whole slide, ``tiles`` joins what tiles hold, ``crops`` cuts cells out for the encoder as ``cutting``
says, ``qc`` draws them for a person. OpenSlide, SciPy and scikit-image wait until first used.
"""

from cytomil.slides.crops import Cutting, iter_crops
from cytomil.slides.find import CellFinding, find_cells, iter_cells, require_enough_cells
from cytomil.slides.multi_file import companions_of
from cytomil.slides.open import SLIDE_SUFFIXES, WHOLE_SLIDE_ONLY_SUFFIXES, Handles, Slide, is_slide_file, open_slide
from cytomil.slides.resolution import Resolutions, read_resolutions
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
