"""Open a whole slide, find its cells, crop them.

``open`` reads any region at any resolution, ``detect`` finds cells in one tile, ``find`` in a whole slide, ``crops``
cuts them out for the encoder, ``qc`` draws them for a person. OpenSlide, SciPy and scikit-image wait until first used.
"""

from cytomil.slides.crops import iter_crops
from cytomil.slides.find import CellFinding, Cells, find_cells, require_enough_cells
from cytomil.slides.open import SLIDE_SUFFIXES, Slide, is_slide_file, open_slide
from cytomil.slides.qc import qc_thumbnail

__all__ = [
    "SLIDE_SUFFIXES",
    "CellFinding",
    "Cells",
    "Slide",
    "find_cells",
    "is_slide_file",
    "iter_crops",
    "open_slide",
    "qc_thumbnail",
    "require_enough_cells",
]
