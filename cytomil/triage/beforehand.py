"""How much there is to read in a folder of slides, as far as it can be known before they are read."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cytomil.progress import Work
from cytomil.triage.apart import ReadingProcess
from cytomil.triage.sources import Found


def work_on(found: Sequence[Found], process: ReadingProcess) -> tuple[Work, list[int]]:
    """The work of assessing these slides, and how much of it each is.

    Cells are counted where all slides are bags or folders of cells. A whole slide's are not known before they are looked
    for: where there are any, these are counted, and what else is there takes little beside them.
    """
    cells = [process.n_cells(one) for one in found]
    without_gpu = not torch.cuda.is_available()
    counted = [n for n in cells if n is not None]
    if len(counted) == len(cells):
        # The first one waits for the engine to start, which takes longer than so few cells.
        return Work(sum(counted), "cells", warm_up=1, without_gpu=without_gpu), counted
    units = [int(n is None) for n in cells]
    return Work(sum(units), "whole slides", without_gpu=without_gpu), units
