"""Damaged and hostile slides of five formats, read as `rank` reads slides: in another process, with its limits.

Each must be read, refused in one line, or end only that process. The exit status is 1 if one raises anything else. Slides
that take more than 5 s, or more than 1 GB beyond what the process needs, are named.
"""

from __future__ import annotations

import argparse
import os
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.slide_formats import (
    VMS,
    Element,
    Entry,
    Page,
    Slide,
    dicom,
    dicom_elements,
    ndpi_pages,
    svs_pages,
    tiff,
    tiff_pages,
    vms,
)
from bench.tables import Measured, Table

_SLOW_S, _LARGE_KB = 5.0, 1 << 20
READ, REFUSED, ENDED, FAULT = "read", "refused", "ended", "other error"
SLOW, LARGE = "over 5 s", "over 1 GB"
_TRUNCATIONS = 50

_U32 = 2**32 - 1
_NUMBERS = (0, 1, 7, 65_535, 65_536, 2**20, 2**31 - 1, 2**31, _U32)
_TIFF_TAGS = (256, 257, 258, 262, 273, 277, 278, 279, 284, 322, 323, 324, 325)
_COMPRESSIONS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 32773, 33003, 33005, 34712, 50000, 65_535)
_RATIOS = ((0, 1), (1, 0), (0, 0), (_U32, 1), (1, _U32))
_TEXTS = ("0", "-1", "nan", "inf", "1e308", "1e-308", "", "x" * 100_000, "0\\0", "%n%s", "1;2")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--changes", type=int, default=50, help="slides with random bytes, for each format and place")
    parser.add_argument("--formats", nargs="*", default=list(sound()), choices=list(sound()))
    parser.add_argument("--keep", type=Path, help="folder for the slides that are named")
    parser.add_argument("--seed", type=int, default=0)


def measure(options: argparse.Namespace) -> Measured:
    tallies: dict[str, Counter[str]] = {}
    named: list[str] = []
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, _Reader(Path(folder)) as reader:
        for name in options.formats:
            if (outcome := reader.read(sound()[name])[0]) != READ:
                raise SystemExit(f"the sound slide of {name} is not read: {outcome}")
        for name, kind, slide in hostile(options.formats, options.changes, options.seed):
            outcome, marks, said = reader.read(slide)
            tally = tallies.setdefault(f"{name}: {kind}", Counter())
            tally.update([outcome, *marks])
            if outcome in (ENDED, FAULT) or marks:
                named.append(f"{len(named)}: {name}, {kind}: {', '.join([outcome, *marks])}: {said}")
                print(named[-1], file=sys.stderr, flush=True)
                if options.keep:
                    slide.write(options.keep / f"{len(named) - 1}")
    total = sum(tallies.values(), Counter())
    columns = (READ, REFUSED, ENDED, FAULT, SLOW, LARGE)

    def row(what: str, tally: Counter[str]) -> dict[str, Any]:
        n = sum(tally[outcome] for outcome in (READ, REFUSED, ENDED, FAULT))
        return {"slides": what, "number": n, **{one: tally[one] for one in columns}}

    table = Table.of(*(row(what, tally) for what, tally in tallies.items()), row("all", total))
    if total[FAULT]:
        raise SystemExit("\n".join([table.markdown(), *named]))
    text = f"Read in {time.perf_counter() - started:.0f} s; seed {options.seed}."
    return Measured({what: dict(tally) for what, tally in tallies.items()}, (text, table))


def sound() -> dict[str, Slide]:
    """One sound slide of each format."""
    return {
        "TIFF": tiff(tiff_pages(), "a.tif"),
        "SVS": tiff(svs_pages(), "a.svs"),
        "NDPI": tiff(ndpi_pages(), "a.ndpi"),
        "VMS": vms(),
        "DICOM": dicom(dicom_elements()),
    }


def hostile(formats: Sequence[str], changes: int, seed: int) -> Iterator[tuple[str, str, Slide]]:
    """Format, kind of damage, and slide. ``changes`` slides have random bytes, for each format and each of two places."""
    rng = np.random.default_rng(seed)
    for name in formats:
        slide = sound()[name]
        files, headers = list(slide.files), list(slide.headers)
        for i in range(_TRUNCATIONS):
            content = slide.files[files[i % len(files)]]
            yield name, "cut off", slide.with_file(files[i % len(files)], content[: i * len(content) // _TRUNCATIONS])
        for i in range(changes):
            file = headers[i % len(headers)]
            end, content = slide.headers[file], slide.files[file]
            yield name, "header bytes", slide.with_file(file, _changed(content, 0, end, rng))
            if end < len(content):
                yield name, "pixel bytes", slide.with_file(file, _changed(content, end, len(content), rng))
        for wrong in _wrong(name):
            yield name, "wrong tags", wrong


def _wrong(name: str) -> Iterator[Slide]:
    if name == "VMS":
        for key in VMS:
            for value in (*map(str, _NUMBERS), *_TEXTS, "a.vms", "../a.jpg", "/dev/zero"):
                yield vms(VMS | {key: value})
    elif name == "DICOM":
        yield from map(dicom, _wrong_dicoms())
    else:
        pages, file = {
            "TIFF": (tiff_pages(), "a.tif"),
            "SVS": (svs_pages(), "a.svs"),
            "NDPI": (ndpi_pages(), "a.ndpi"),
        }[name]
        yield from (tiff(changed, file) for changed in _wrong_tiffs(pages))
    if name == "SVS":
        yield from (tiff(svs_pages(text), "a.svs") for text in _TEXTS)


def deep_dicom() -> dict[int, Element]:
    """Sequences within sequences, which exhaust the stack of OpenSlide's reader of DICOM."""
    item = struct.pack("<HHI", 0xFFFE, 0xE000, _U32) + struct.pack("<HH2sHI", 0x28, 0x9110, b"SQ", 0, _U32)
    return dicom_elements() | {0x5200_9229: Element("SQ", item * 20_000)}


def _changed(content: bytes, start: int, stop: int, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for at in rng.integers(start, stop, size=int(rng.integers(1, 9))).tolist():
        changed[at] ^= int(rng.integers(1, 256))
    return bytes(changed)


def _wrong_tiffs(pages: list[Page]) -> Iterator[list[Page]]:
    for number in (0, len(pages) - 1):
        page = pages[number]

        def put(entries: dict[int, Entry], of: int = number, **more: Any) -> list[Page]:
            return [*pages[:of], replace(pages[of], entries={**pages[of].entries, **entries}, **more), *pages[of + 1 :]]

        for tag in (tag for tag in _TIFF_TAGS if tag in page.entries):
            count = page.entries[tag].count
            for value in _NUMBERS:
                yield put({tag: Entry(4, count, struct.pack("<I", value) * count)})
            for count in (0, 2**16, 2**31, _U32):
                yield put({tag: replace(page.entries[tag], count=count)})
            yield put({tag: replace(page.entries[tag], type=13)})
        for value in _COMPRESSIONS:
            yield put({259: Entry.of(3, value)})
        for ratio in _RATIOS:
            yield put({282: Entry.of(5, *ratio), 283: Entry.of(5, *ratio)})
        for sides in ((2**20, 2**20), (2**24, 2**16), (2**31 - 1, 2**10), (_U32, _U32)):
            yield put({256: Entry.of(4, sides[0]), 257: Entry.of(4, sides[1])})
        for sides in ((2**12, 2**12), (2**13, 2**13), (2**16, 2**16), (1, 1), (16, 2**26)):
            yield put({322: Entry.of(4, sides[0]), 323: Entry.of(4, sides[1])})
            yield put({tag: Entry.of(4, side) for tag, side in zip((256, 257, 322, 323), sides * 2, strict=True)})
        for tag in (330, 34665, 34853):  # directories within this one, which point back to it or nowhere
            for place in (0, 8, _U32):
                yield put({tag: Entry.of(4, place)})
        for place in (0, 1, 8, _U32):
            yield put({}, next=place)


def _wrong_dicoms() -> Iterator[dict[int, Element]]:
    elements = dicom_elements()
    for tag, element in elements.items():
        if element.vr in ("US", "UL"):
            code = "H" if element.vr == "US" else "I"
            for value in _NUMBERS:
                yield elements | {
                    tag: replace(element, raw=struct.pack(f"<{code}", value % 256 ** struct.calcsize(code)))
                }
        elif element.vr != "SQ":
            for text in (*map(str, _NUMBERS), *_TEXTS):
                yield elements | {tag: replace(element, raw=text.encode()[:60_000])}
        yield {other: one for other, one in elements.items() if other != tag}
    for text in _TEXTS:
        spacing = Element("DS", f"{text}\\{text}".encode()[:60_000])
        measures = Element("SQ", inside={0x0028_9110: Element("SQ", inside={0x0028_0030: spacing})})
        yield elements | {0x5200_9229: measures}
    yield deep_dicom()


class _Reader:
    """Writes one slide after another, and reads each in another process."""

    def __init__(self, root: Path) -> None:
        from cytomil.encoders.transform import CellTransform
        from cytomil.features.cells import Preparation
        from cytomil.slides import Cutting, Resolutions
        from cytomil.triage.apart import ReadingProcess
        from cytomil.triage.whole_slide import SlideReading

        os.environ.setdefault("PYTHONWARNINGS", "ignore")  # as the command line does
        self._root, self._n, self._is_warm = root, 0, False
        self._process = ReadingProcess()
        self._reading = SlideReading(Cutting(crop_um=12.0, crop_px=32), Resolutions(), root / "cache", 1)
        self._preparation = Preparation(CellTransform(16, 1.0))

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()

    def read(self, slide: Slide) -> tuple[str, list[str], str]:
        """The outcome, whether it was slow or large, and what was said."""
        from cytomil.errors import CytomilError

        if not self._is_warm:  # what a new process imports is not the slide's time
            self._is_warm = True
            self.read(sound()["TIFF"])
        self._n += 1
        folder = self._root / f"{self._n}"
        slide.write(folder)
        own = self._process.run(folder / "before", _forget_peak)
        started, said, outcome = time.monotonic(), "", READ
        try:
            self._read_all(folder / slide.opened)
        except CytomilError as error:
            said = str(error)
            outcome = ENDED if "its reader stopped" in said else REFUSED
        except Exception as error:
            said, outcome = f"{type(error).__name__}: {error}", FAULT
        seconds = time.monotonic() - started
        self._is_warm = outcome != ENDED
        marks = [SLOW] if seconds > _SLOW_S else []
        if outcome != ENDED and self._process.run(folder / "after", _peak_kb) - own > _LARGE_KB:
            marks.append(LARGE)
        for name in slide.files:
            (folder / name).unlink()
        return outcome, marks, f"{said[:300]} ({seconds:.1f} s)"

    def _read_all(self, path: Path) -> None:
        """All that `rank` does with a slide, but for its model."""
        from cytomil.errors import NoCellsError
        from cytomil.triage.assess import not_assessed
        from cytomil.triage.sources import SlideEntry
        from cytomil.triage.worklist import Call, KeyInstance, SlideResult

        found = SlideEntry(path.name, path)
        out = path.parent / "out"
        slide = self._process.open(found, self._reading)
        slide.fingerprint()
        try:
            names = [name for block in slide.blocks(self._preparation, 256, 1) for name in block.instance_ids]
        except NoCellsError as error:
            slide.with_qc(not_assessed(found, error), out)
            return
        slide.content_sha256()
        keys = tuple(KeyInstance(name, 1.0, b"") for name in names[:3])
        slide.images(names[:3], 64)
        slide.cautions()
        result = SlideResult(path.name, str(path), Call.REVIEW, mpp=slide.mpp, key_instances=keys)
        slide.placed(result, names, np.ones(len(names)), out, True)


def _forget_peak(_: object) -> int:
    """Start counting this process's peak memory anew (Linux). Returns what it has, in kB."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _peak_kb(_)


def _peak_kb(_: object) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text("ascii").splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1])
