"""The memory a run will take, told before it is taken."""

from __future__ import annotations

import psutil

from cytomil.bags.manifest import BagRow
from cytomil.errors import SettingsError
from cytomil.progress import Listener
from cytomil.settings import PretrainSettings


def require_memory(needed: int, rows: tuple[BagRow, ...], settings: PretrainSettings, listener: Listener) -> None:
    """Say how much the decoded cells take; raise `SettingsError` if the machine has not that much to give."""
    n_cells = sum(row.n_instances for row in rows)
    size = settings.image_size
    listener.note(f"{n_cells:,} cells at {size}×{size} px: {needed / 1e6:,.0f} MB of memory")
    available = psutil.virtual_memory().available
    if needed > 0.8 * available:
        raise SettingsError(
            f"{n_cells:,} cells at {size}×{size} px need {needed / 1e9:.1f} GB of memory; {available / 1e9:.1f} GB are free. "
            "Lower --image-size or make fewer bags."
        )
