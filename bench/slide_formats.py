"""Small sound slides of several formats, in memory, whose every header entry can be replaced by a wrong one."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw

MPP = 0.25
_SIZE, _TILE = (512, 384), 128
_WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 9: 4, 11: 4}  # bytes of a value, by TIFF's number of its type
_RATIONAL, _LONG, _SIGNED = 5, 4, 9
_TILE_TAGS, _STRIP_TAGS = (324, 325), (273, 279)


@dataclass(frozen=True)
class Slide:
    """One slide: its files by name, the one that is opened, and where in which file its header ends."""

    files: dict[str, bytes]
    opened: str
    headers: dict[str, int]

    def with_file(self, name: str, content: bytes) -> Slide:
        """The same slide with another content of one file."""
        return Slide(self.files | {name: content}, self.opened, self.headers)

    def write(self, folder: Path) -> None:
        """Write its files into a new folder."""
        folder.mkdir(parents=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)


@dataclass(frozen=True)
class Entry:
    """One entry of a TIFF directory: type and count as the file states them, and the bytes of the value."""

    type: int
    count: int
    raw: bytes

    @classmethod
    def of(cls, kind: int, *values: float) -> Entry:
        """Values of a type; a rational is two numbers."""
        code = {3: "H", 4: "I", 5: "I", 9: "i", 11: "f"}[kind]
        raw = struct.pack(f"<{len(values)}{code}", *values)
        return cls(kind, len(raw) // _WIDTHS[kind], raw)

    @classmethod
    def text(cls, value: str) -> Entry:
        """A text."""
        return cls(2, len(value) + 1, value.encode() + b"\0")


@dataclass(frozen=True)
class Page:
    """One page: its entries by tag, the encoded tiles or strips, and the next directory where it is a wrong one."""

    entries: Mapping[int, Entry]
    chunks: Sequence[bytes]
    next: int | None = None


def tiff(pages: Sequence[Page], name: str) -> Slide:
    """A little-endian TIFF: all directories and their values first, then the pixels."""
    starts, end = [], 8
    for page in pages:
        starts.append(end)
        end += 6 + 12 * len(page.entries) + sum(len(one.raw) for one in page.entries.values() if len(one.raw) > 4)
    header, pixels = bytearray(struct.pack("<2sHI", b"II", 42, 8)), bytearray()
    for i, page in enumerate(pages):
        following = starts[i + 1] if i + 1 < len(pages) else 0
        values_at = starts[i] + 6 + 12 * len(page.entries)
        directory, values = bytearray(struct.pack("<H", len(page.entries))), bytearray()
        for tag, entry in sorted(page.entries.items()):
            raw = entry.raw
            if tag in (_TILE_TAGS[0], _STRIP_TAGS[0]) and not any(raw):
                places = [end + len(pixels) + sum(map(len, page.chunks[:n])) for n in range(len(page.chunks))]
                raw = struct.pack(f"<{len(places)}I", *places)
            if len(raw) > 4:
                directory += struct.pack("<HHII", tag, entry.type, entry.count, values_at + len(values))
                values += raw
            else:
                directory += struct.pack("<HHI4s", tag, entry.type, entry.count, raw)
        header += directory + struct.pack("<I", following if page.next is None else page.next) + values
        pixels += b"".join(page.chunks)
    return Slide({name: bytes(header + pixels)}, name, {name: len(header)})


def _picture(shrunk: int = 1) -> Image.Image:
    picture = Image.new("RGB", _SIZE, (236, 232, 238))
    draw = ImageDraw.Draw(picture)
    for x in range(32, _SIZE[0], 64):
        for y in range(32, _SIZE[1], 64):
            draw.ellipse((x - 14, y - 14, x + 14, y + 14), fill=(150, 90, 160))
    return picture.resize((_SIZE[0] // shrunk, _SIZE[1] // shrunk))


def _jpeg(picture: Image.Image, **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85, **options)
    return buffer.getvalue()


def _tiles(picture: Image.Image) -> Iterator[Image.Image]:
    for top in range(0, picture.height, _TILE):
        for left in range(0, picture.width, _TILE):
            yield picture.crop((left, top, left + _TILE, top + _TILE))


def _page(picture: Image.Image, chunks: list[bytes], compression: int, tiled: bool) -> dict[int, Entry]:
    offsets, sizes = _TILE_TAGS if tiled else _STRIP_TAGS
    per_mm = (round(10_000 / MPP), 1)
    shape = {322: Entry.of(3, _TILE), 323: Entry.of(3, _TILE)} if tiled else {278: Entry.of(_LONG, picture.height)}
    return shape | {
        256: Entry.of(_LONG, picture.width),
        257: Entry.of(_LONG, picture.height),
        258: Entry.of(3, 8, 8, 8),
        259: Entry.of(3, compression),
        262: Entry.of(3, 6 if compression == 7 else 2),
        277: Entry.of(3, 3),
        282: Entry.of(_RATIONAL, *per_mm),
        283: Entry.of(_RATIONAL, *per_mm),
        284: Entry.of(3, 1),
        296: Entry.of(3, 3),
        offsets: Entry.of(_LONG, *[0] * len(chunks)),
        sizes: Entry.of(_LONG, *map(len, chunks)),
    }


def tiff_pages() -> list[Page]:
    """A plain pyramidal TIFF without compression."""
    made = []
    for level in range(3):
        picture = _picture(2**level)
        chunks = [tile.tobytes() for tile in _tiles(picture)]
        made.append(Page(_page(picture, chunks, 1, tiled=True) | {254: Entry.of(_LONG, int(level > 0))}, chunks))
    return made


def svs_pages(mpp: str = f"{MPP}") -> list[Page]:
    """An Aperio slide: tiles of JPEG, with the resolution in its description."""
    made = []
    for level in range(2):
        picture = _picture(2**level)
        chunks = [_jpeg(tile) for tile in _tiles(picture)]
        text = Entry.text(f"Aperio Image Library v11.0.37\r\n{_SIZE[0]}x{_SIZE[1]} |AppMag = 40|MPP = {mpp}")
        made.append(Page(_page(picture, chunks, 7, tiled=True) | {270: text}, chunks))
    return made


def ndpi_pages() -> list[Page]:
    """A Hamamatsu slide: one JPEG a page, with restart markers."""
    made = []
    for level in range(2):
        picture = _picture(2**level)
        chunks = [_jpeg(picture, subsampling=0, restart_marker_blocks=4)]
        marks = {65420: Entry.of(_LONG, 1), 65421: Entry.of(11, 40 / 2**level)}
        marks |= {tag: Entry.of(_SIGNED, 0) for tag in (65422, 65423, 65424)}
        made.append(Page(_page(picture, chunks, 7, tiled=False) | marks, chunks))
    return made


VMS = {
    "NoLayers": "1",
    "NoJpegColumns": "1",
    "NoJpegRows": "1",
    "ImageFile": "a.jpg",
    "MapFile": "map.jpg",
    "MacroImage": "macro.jpg",
    "PhysicalWidth": str(round(_SIZE[0] * MPP * 1000)),
    "PhysicalHeight": str(round(_SIZE[1] * MPP * 1000)),
    "SourceLens": "40",
}


def vms(index: Mapping[str, str] = VMS) -> Slide:
    """A Hamamatsu slide of an index and three JPEGs."""
    text = "\n".join(["[Virtual Microscope Specimen]", *(f"{key}={value}" for key, value in index.items()), ""])
    small = _jpeg(_picture(4), subsampling=0, restart_marker_blocks=4)
    whole = _jpeg(_picture(), subsampling=0, restart_marker_blocks=4)
    files = {"a.vms": text.encode(), "a.jpg": whole, "map.jpg": small, "macro.jpg": small}
    return Slide(files, "a.vms", {"a.vms": len(text), "a.jpg": 700, "map.jpg": 700})


@dataclass(frozen=True)
class Element:
    """One element of a DICOM file: its VR and the bytes of its value, or the elements of the only item of a sequence."""

    vr: str
    raw: bytes = b""
    inside: Mapping[int, Element] = field(default_factory=dict)


def _uid(last: str) -> Element:
    return Element("UI", f"1.2.840.10008.{last}".encode())


_ROOT = "1.2.3.4"
_SYNTAX, _CLASS = "1.2.4.50", "5.1.4.1.1.77.1.6"


def dicom_elements() -> dict[int, Element]:
    """The data set of a slide in DICOM, without its pixels: JPEG tiles in full order."""
    spacing = Element("DS", f"{MPP / 1000}\\{MPP / 1000}".encode())
    measures = Element("SQ", inside={0x0028_9110: Element("SQ", inside={0x0028_0030: spacing})})
    n = (_SIZE[0] // _TILE) * (_SIZE[1] // _TILE)
    made = {
        0x0008_0008: Element("CS", b"ORIGINAL\\PRIMARY\\VOLUME\\NONE"),
        0x0008_0016: _uid(_CLASS),
        0x0008_0018: Element("UI", f"{_ROOT}.1".encode()),
        0x0008_0060: Element("CS", b"SM"),
        0x0020_000D: Element("UI", f"{_ROOT}.2".encode()),
        0x0020_000E: Element("UI", f"{_ROOT}.3".encode()),
        0x0020_9311: Element("CS", b"TILED_FULL"),
        0x0028_0004: Element("CS", b"YBR_FULL_422"),
        0x0028_0008: Element("IS", str(n).encode()),
        0x0048_0006: Element("UL", struct.pack("<I", _SIZE[0])),
        0x0048_0007: Element("UL", struct.pack("<I", _SIZE[1])),
        0x0048_0302: Element("UL", struct.pack("<I", 1)),
        0x0048_0303: Element("UL", struct.pack("<I", 1)),
        0x5200_9229: measures,
    }
    shorts = {0x0028_0002: 3, 0x0028_0006: 0, 0x0028_0010: _TILE, 0x0028_0011: _TILE}
    shorts |= {0x0028_0100: 8, 0x0028_0101: 8, 0x0028_0102: 7, 0x0028_0103: 0}
    return made | {tag: Element("US", struct.pack("<H", value)) for tag, value in shorts.items()}


def dicom(elements: Mapping[int, Element]) -> Slide:
    """A DICOM file of these elements and sound pixels."""
    meta = {0x0002_0001: Element("OB", b"\0\1"), 0x0002_0002: _uid(_CLASS)}
    meta |= {0x0002_0003: Element("UI", f"{_ROOT}.1".encode()), 0x0002_0010: _uid(_SYNTAX)}
    meta[0x0002_0012] = Element("UI", f"{_ROOT}.9".encode())
    described = _encoded(meta)
    header = bytes(128) + b"DICM" + _encoded({0x0002_0000: Element("UL", struct.pack("<I", len(described)))})
    header += described + _encoded(elements)
    frames = [_jpeg(tile) for tile in _tiles(_picture())]
    frames = [frame + b"\0" * (len(frame) % 2) for frame in frames]
    pixels = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFF_FFFF)
    for item in (b"", *frames):
        pixels += struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item
    pixels += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return Slide({"a.dcm": header + pixels}, "a.dcm", {"a.dcm": len(header)})


def _encoded(elements: Mapping[int, Element]) -> bytes:
    made = b""
    for tag, element in sorted(elements.items()):
        raw, group = element.raw, struct.pack("<HH", tag >> 16, tag & 0xFFFF)
        if element.inside:
            item = _encoded(element.inside)
            raw = struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item
        raw += (b"\0" if element.vr == "UI" else b" ") * (len(raw) % 2)
        is_long = element.vr in ("OB", "SQ")
        made += group + element.vr.encode() + struct.pack("<HI" if is_long else "<H", *(0, len(raw))[not is_long :])
        made += raw
    return made
