"""Recognises what is neither a slide nor a cell: system files, notes, and folders that cytomil wrote."""

from __future__ import annotations

from pathlib import Path, PurePath

_LITTER = frozenset(
    {
        # Windows, macOS
        "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "recycler",
        "system volume information", "__macosx", "icon\r", "network trash folder", "temporary items",
        # Network drives (Synology, QNAP), Linux, Python
        "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "lost+found", "__pycache__",
    }
)  # fmt: skip
_HIDDEN_LITTER = frozenset({".ds_store", ".directory", ".localized", ".cytomil"})
_NOTES = frozenset(
    {
        # Tables and documents
        ".csv", ".tsv", ".xls", ".xlsx", ".xlsm", ".xlsb", ".ods", ".doc", ".docx", ".odt", ".rtf", ".ppt", ".pptx",
        ".odp", ".pdf", ".txt", ".md", ".rst", ".html", ".htm", ".log", ".url", ".lnk",
        # Files that programs write beside images: settings, annotations, checksums
        ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".ini", ".geojson", ".ndpa", ".qpproj", ".qpdata", ".xmp",
        ".md5", ".sha1", ".sha256", ".dvc", ".py", ".sh", ".ipynb",
    }
)  # fmt: skip


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or was left by a system or an open office program."""
    return name.startswith((".", "~$")) or name.casefold() in _LITTER


def left_by_system(name: str) -> bool:
    """Whether a system or program makes files of this name unasked; other hidden files may be someone's work."""
    folded = name.casefold()
    return (
        folded in _LITTER
        or folded in _HIDDEN_LITTER
        or folded.startswith(("._", "~$", ".~lock.", ".nfs", ".fuse_hidden"))
    )


def is_note(name: str) -> bool:
    """Whether a file of this name is a table, a document or another program's note."""
    return PurePath(name).suffix.lower() in _NOTES


SNIFFED_BYTES = 1024

_STARTS = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself. Fetch it with `git lfs pull`"),
    (b"/annex/objects/", "a git-annex pointer, not the file itself. Fetch it with `git annex get`"),
    (b"%PDF", "a PDF document. Export the image itself"),
    (b"PK\x03\x04", "a ZIP archive or an office document. Unpack it, or export the image itself"),
    (b"\x1f\x8b", "a gzip archive. Unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive. Unpack it"),
    (b"Rar!", "a RAR archive. Unpack it"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"8BPS", "a Photoshop document. Export it as PNG or TIFF"),
    (b"%!PS", "a PostScript document. Export it as PNG or TIFF"),
)
_PAGE_STARTS = (b"<!doctype html", b"<html")


def foreign_content(head: bytes) -> str | None:
    """What a file that begins with ``head`` holds, and what to do about it; None if that is unknown.

    The text fits after "is" and has no full stop.
    """
    if not head.strip(b"\0"):
        return "all zeros. It was not copied in full; copy it again"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(_PAGE_STARTS):
        return "a web page saved under this name, such as a log-in page. Download the file again"
    if start.startswith((b"<svg", b"<?xml")):
        return "an XML or SVG document. Export it as PNG or TIFF"
    if is_dicom(head):
        return "a DICOM file"
    return next((what for begin, what in _STARTS if head.startswith(begin)), None)


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is of DICOM's format, whatever its name."""
    return head[128:132] == b"DICM"


OWN_FOLDER_MARK = ".cytomil"
"""A file that a command creates in its output folder before it writes anything else."""

_CARDS = ("triage.json", "make-bags.json", "encoder.json", "evaluate.json")
_TABLES = ("bags.csv", "features.csv")
_TABLE_START = b"bag_id,path,patient_id,split,label,n_instances"
_HEAD_BYTES = 1 << 20


def is_own_output(folder: Path) -> bool:
    """Whether cytomil wrote this folder: a worklist, bags, features or a model, finished or not."""
    return (
        (folder / OWN_FOLDER_MARK).is_file()
        or any(b'"cytomil' in _head(folder / name) for name in _CARDS)
        or any(_TABLE_START in _head(folder / name) for name in _TABLES)
    )


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError:
        return b""


def mark_own(folder: Path) -> None:
    """Create ``folder`` and mark it as output of cytomil."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OWN_FOLDER_MARK).touch()
