"""The exceptions that users can see. Each message is one line: which file, what is wrong, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from cytomil.litter import left_by_system
from cytomil.text import printable

DEBUG = "CYTOMIL_DEBUG"
"""The environment variable that shows tracebacks, and what libraries print."""


class CytomilError(Exception):
    """The user's input is wrong. The command line prints the message and exits with status 1."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.split())))


class SettingsError(CytomilError):
    """A setting is unknown, of the wrong type or out of range."""


class NotFoundError(CytomilError):
    """A file or folder that a command needs does not exist."""


class FolderInUseError(CytomilError):
    """Another process writes into the output folder of a command."""


class NotEnoughCellsError(CytomilError):
    """The source holds fewer distinct cells than the requested bags need."""


class PictureError(CytomilError):
    """The pixels of a picture cannot be read, or their meaning is unclear. The message does not name the picture."""


class ImageUnreadableError(CytomilError):
    """One cell image cannot be decoded. A batch continues without it and lists it at the end."""


class BagFileError(CytomilError):
    """A bag file or manifest is truncated, has another schema, or is inconsistent."""


class TableError(CytomilError):
    """A user's table (labels, resolutions, patients) cannot be read, or is inconsistent."""


class FeatureFileError(CytomilError):
    """A feature cache is truncated, has another schema, or was made by another encoder."""


class EncoderBundleError(CytomilError):
    """An encoder bundle is incomplete or damaged, or does not match the features it is used with."""


class WeightsFileError(CytomilError):
    """A file of initial weights cannot be read, or does not match the architecture."""


class EngineError(CytomilError):
    """An engine cannot be built, gives wrong embeddings, or cannot run on this machine."""


class EngineRefusedError(EngineError):
    """The embeddings of a compiled engine differ too much from those of eager PyTorch."""


class TriageModelError(CytomilError):
    """A triage model is incomplete or damaged."""


class SignatureError(CytomilError):
    """A model is not signed with the required key, or the key cannot be used."""


class ReviewError(CytomilError):
    """A slide, a cell or a triage folder cannot be shown for review."""


class ReviewLogError(CytomilError):
    """The review log cannot be written or read, or does not accept an entry."""


class AuditLogError(CytomilError):
    """The audit log of rank cannot be written or read."""


class EvaluationError(CytomilError):
    """Reports are damaged, or cannot be combined in one table."""


class ResumeError(CytomilError):
    """A checkpoint was made with other settings or data, or is damaged."""


class TrainingProcessError(CytomilError):
    """Another process of the same training run ended or cannot be reached."""


class EndedElsewhereError(Exception):
    """Another process of the same training run failed first and printed the reason. This process ends silently."""


class DivergedError(CytomilError):
    """The training loss became NaN or infinite."""


class SlideUnreadableError(CytomilError):
    """A whole slide cannot be opened or read: the file is damaged, or OpenSlide does not support its format."""


class ResolutionError(CytomilError):
    """A slide opens, but its resolution (µm per pixel) is missing or implausible."""


class PixelsNotSquareError(ResolutionError):
    """A slide's horizontal and vertical resolutions differ. A fallback resolution does not help."""


class NoCellsError(CytomilError):
    """A slide was read, but it holds no cells or too few."""


class WorkersError(CytomilError):
    """The requested workers are not available: Ray is not installed, cannot be reached, or its machines do not match."""


def require_folder(path: Path, made_by: str) -> Path:
    """Return ``path`` if it is a folder. Raises `NotFoundError`, which names the command that makes it, otherwise."""
    if path.is_dir():
        return path
    state = "is a file, not a folder" if path.exists() else "does not exist"
    raise NotFoundError(f"{path} {state}. Make it with `{made_by}`, or name another folder.")


def require_replaceable(path: Path, mark: str, own: Sequence[str] = ("*",)) -> None:
    """Check that ``path`` may be deleted and replaced, so that a mistyped --out never deletes a user's files.

    Args:
        path: the output folder.
        mark: name of a file that cytomil writes into each such folder.
        own: patterns of the files, relative to ``path``, that may be deleted.

    Raises:
        CytomilError: ``path`` is a file or holds the working folder; it is not empty and holds no ``mark``; or it holds
            a file that matches none of ``own``. Files of the operating system are allowed.
    """
    if path.is_file():
        raise CytomilError(f"{path} is a file. Name a folder with --out.")
    if path.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise CytomilError(
            f"{path} is or contains the working folder and was not changed. Name a folder in it with --out."
        )
    if path.is_dir() and any(path.iterdir()) and not (path / mark).is_file():
        raise CytomilError(
            f"{path} holds other files and no {mark}, and was not changed. Name another folder with --out."
        )
    for file in sorted(path.rglob("*")) if path.is_dir() else ():
        name = file.relative_to(path).as_posix()
        if (file.is_dir() and not file.is_symlink()) or left_by_system(file.name):
            continue
        if not any(fnmatchcase(name, pattern) for pattern in own):
            raise CytomilError(
                f"{file} was not written by cytomil, and would be deleted with {path}. Move it, or name another folder with "
                "--out."
            )


def require_file(path: Path, made_by: str) -> Path:
    """Return ``path`` if it is a file. Raises `NotFoundError`, which names the command that makes it, otherwise."""
    if path.is_file():
        return path
    state = "is a folder, not a file" if path.exists() else "does not exist"
    raise NotFoundError(f"{path} {state}. Make it with `{made_by}`, or name another file.")


def why_unreadable(path: Path, error: OSError) -> str:
    """Why ``path`` cannot be read, and what to do about it. The text does not name ``path``."""
    if path.is_symlink() and not path.exists():
        return "a link to a file that does not exist. Correct the link or remove it."
    if isinstance(error, PermissionError):
        return "no permission to read it. Ask its owner or your system administrator."
    return f"cannot be read ({error.strerror or error}). Check the disk and copy the file again."
