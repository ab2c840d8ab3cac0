"""The exceptions a user can meet. Each message is one line: what is wrong, where, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from cytomil.litter import left_by_system
from cytomil.text import printable


class CytomilError(Exception):
    """The user's input is at fault; the command line prints the message and exits with status 1."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.split())))


class SettingsError(CytomilError):
    """A setting is unknown, of the wrong type or out of range."""


class NotFoundError(CytomilError):
    """A file or folder that a command needs is not there."""


class FolderInUseError(CytomilError):
    """Another process writes into the folder that a command wants to write."""


class NotEnoughCellsError(CytomilError):
    """The source holds fewer distinct cells than the asked-for bags need."""


class PictureError(CytomilError):
    """A picture's pixels cannot be read, or what they mean is not sure. The message is the reason, without a name."""


class ImageUnreadableError(CytomilError):
    """One cell image cannot be decoded. A batch goes on without it and lists it at the end."""


class BagFileError(CytomilError):
    """A bag file or manifest is truncated, of another schema, or contradicts itself."""


class TableError(CytomilError):
    """A user's table (labels, resolutions, patients) cannot be read, or says two things at once."""


class FeatureFileError(CytomilError):
    """A feature cache is truncated, of another schema, or was made by another encoder."""


class EncoderBundleError(CytomilError):
    """An encoder bundle is incomplete, damaged, or does not fit the features it is used with."""


class WeightsFileError(CytomilError):
    """A file of start weights cannot be read, or does not fit the architecture."""


class EngineError(CytomilError):
    """An engine cannot be built, is refused for what it gives, or cannot run here."""


class EngineRefusedError(EngineError):
    """A compiled engine strays too far from eager."""


class TriageModelError(CytomilError):
    """A triage model is incomplete or damaged."""


class ReviewError(CytomilError):
    """A slide, a cell or a triage folder cannot be shown for review."""


class ReviewLogError(CytomilError):
    """The review log cannot be written or read, or does not take an entry."""


class EvaluationError(CytomilError):
    """Reports are damaged, or cannot stand in one table."""


class ResumeError(CytomilError):
    """A checkpoint was made with other settings or data than the ones now asked for."""


class TrainingProcessError(CytomilError):
    """Another of the processes that train together ended or cannot be reached."""


class EndedElsewhereError(Exception):
    """Another of the processes that train together failed first and has said why; this one ends without a word."""


class DivergedError(CytomilError):
    """The training loss became NaN or infinite."""


class SlideUnreadableError(CytomilError):
    """A whole slide cannot be opened or read: a damaged file or a format OpenSlide does not know."""


class ResolutionError(CytomilError):
    """A slide opens, but its micrometres per pixel are absent or implausible."""


class PixelsNotSquareError(ResolutionError):
    """A slide's file states one resolution across and another down; a fallback resolution cannot cure that."""


class NoCellsError(CytomilError):
    """A slide was read but held no cells, or too few to say anything."""


class WorkersError(CytomilError):
    """The workers that were asked for cannot be had: Ray is not installed, not reachable, or its machines do not fit."""


def require_folder(path: Path, made_by: str) -> Path:
    """Return ``path`` if it is a folder; else raise `NotFoundError` naming the command that makes it."""
    if path.is_dir():
        return path
    state = "is a file, not a folder" if path.exists() else "does not exist"
    raise NotFoundError(f"{path} {state}. Make it with `{made_by}`, or name another folder.")


def require_replaceable(path: Path, mark: str, own: Sequence[str] = ("*",)) -> None:
    """Raise `CytomilError` unless ``path`` is free, empty, or a folder that holds ``mark`` (the file cytomil puts there).

    ``own`` are patterns of the files, relative to ``path``, that may be deleted; one that matches none, and was not left by
    a system, is refused by name.

    What replaces a folder whole asks this first, so that a mistyped --out never deletes someone's work.
    """
    if path.is_file():
        raise CytomilError(f"{path} is a file. Name a folder with --out.")
    if path.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise CytomilError(
            f"{path} is the working folder or holds it; it is left alone. Name a folder in it with --out."
        )
    if path.is_dir() and any(path.iterdir()) and not (path / mark).is_file():
        raise CytomilError(f"{path} holds other files and no {mark}; it is left alone. Name another folder with --out.")
    for file in sorted(path.rglob("*")) if path.is_dir() else ():
        name = file.relative_to(path).as_posix()
        if (file.is_dir() and not file.is_symlink()) or left_by_system(file.name):
            continue
        if not any(fnmatchcase(name, pattern) for pattern in own):
            raise CytomilError(
                f"{file} was not written by cytomil, and {path} would be replaced whole. Move it, or name another folder "
                "with --out."
            )


def require_file(path: Path, made_by: str) -> Path:
    """Return ``path`` if it is a file; else raise `NotFoundError` naming the command that makes it."""
    if path.is_file():
        return path
    state = "is a folder, not a file" if path.exists() else "does not exist"
    raise NotFoundError(f"{path} {state}. Make it with `{made_by}`, or name another file.")


def why_unreadable(path: Path, error: OSError) -> str:
    """What keeps ``path`` from being read, as one sentence with its cure, without its name."""
    if path.is_symlink() and not path.exists():
        return "a link to a file that is not there. Mend the link or remove it."
    if isinstance(error, PermissionError):
        return "no permission to read it. Ask its owner, or whoever looks after the machine."
    return f"cannot be read ({error.strerror or error}). Check the disk, and copy it again."
