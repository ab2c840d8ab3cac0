"""What made an artefact: code, libraries, moment."""

from __future__ import annotations

import hashlib
import platform
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

from cytomil import __version__

_RECORDED_LIBRARIES = (
    "torch",
    "torchvision",
    "numpy",
    "scikit-learn",
    "scikit-image",
    "opencv-python-headless",
    "h5py",
    "pillow",
)


@cache
def code_fingerprint(*rooms: str) -> str:
    """SHA-256 over the package's own source, so that an artefact names its code outside a git repository too.

    With ``rooms``, sub-packages such as "encoders", only their source counts. It changes with any comment. What is kept
    for a later run is therefore keyed by an explicit version instead, such as `cytomil.training.checkpoint.TRAINING_VERSION`.
    """
    root = Path(__file__).parent
    digest = hashlib.sha256()
    folders = [root / room for room in rooms] or [root]
    for source in sorted(file for folder in folders for file in folder.rglob("*.py")):
        digest.update(source.relative_to(root).as_posix().encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()


def versions(*more: str) -> dict[str, str]:
    """Versions of cytomil, Python and the libraries that shape a result, ``more`` among them."""
    found = {"cytomil": __version__, "code": code_fingerprint()[:12], "python": platform.python_version()}
    return found | library_versions(*_RECORDED_LIBRARIES, *more)


@cache
def library_versions(*names: str) -> dict[str, str]:
    """The installed version of each of these libraries, by name; "not installed" for an extra that is missing."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def now() -> str:
    """The moment in UTC, to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
