"""Whether a disk has room for what is about to be written."""

from __future__ import annotations

import shutil
from pathlib import Path

from cytomil.errors import SettingsError


def require_disk_space(needed: int, what: str, folder: Path, cure: str) -> None:
    """Raise `SettingsError` if ``needed`` bytes do not fit where ``folder`` is, or will be.

    ``what``, a plural, is what needs them; ``cure`` says what else to do. A twentieth of what is free is left to others.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if needed > 0.95 * free:
        raise SettingsError(
            f"{what} need {needed / 1e9:.1f} GB of disk; {free / 1e9:.1f} GB are free at {folder}. "
            f"{cure}, or name another disk with --out."
        )
