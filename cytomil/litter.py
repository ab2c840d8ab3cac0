"""What lies in folders of slides and cells and is neither: what systems leave behind, tables and notes."""

from __future__ import annotations

from pathlib import PurePath

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
        # What programs note beside images: settings, annotations, checksums
        ".json", ".xml", ".yaml", ".yml", ".toml", ".ini", ".geojson", ".ndpa", ".qpproj", ".qpdata", ".xmp",
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
