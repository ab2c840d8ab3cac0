"""What a file that is no image holds instead, by its first bytes."""

from __future__ import annotations

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
    """Name what a file that begins with ``head`` holds, with the cure; None where it cannot be told.

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
