"""Readers to be fuzzed, and the process that fuzzes one: ``python -m bench.fuzz_targets NAME CORPUS [libFuzzer options]``.

A target is given bytes, writes them to a file, and reads it. A reader may accept the file or raise a `CytomilError`.
Whatever else it raises is a finding, as are a hang and an excess of memory.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

Reader = Callable[[Path], Any]
_RAM = Path("/dev/shm")


def readers() -> dict[str, tuple[str, Reader]]:
    """Each reader by name, with the name of the file that it reads."""
    import numpy as np

    from cytomil.app import settings
    from cytomil.bags.images import open_image
    from cytomil.bags.manifest import read_manifest
    from cytomil.bags.patients import read_labels
    from cytomil.cards import read_card
    from cytomil.encoders import bundle
    from cytomil.encoders.engines.record import read_record
    from cytomil.encoders.obtain import read_state
    from cytomil.errors import TriageModelError
    from cytomil.experiments.runs import read_runs
    from cytomil.features.index import read_index
    from cytomil.litter import foreign_content
    from cytomil.mil import triage_model
    from cytomil.mil.bags import read_feedback
    from cytomil.pixels import read_tiff_pages
    from cytomil.review.log import ReviewLog
    from cytomil.review.slides import CellPoints, Triage
    from cytomil.review.summary import read_classes
    from cytomil.slides import read_resolutions
    from cytomil.slides.resolution import companions_of

    cells = CellPoints(["a", "b"], np.array([[10, 10, 5, 1], [40, 40, 5, 2]], np.float32))

    def triage_card(path: Path) -> object:
        made_by = "cytomil fit-mil"
        return read_card(path, triage_model.TriageCard, triage_model.SCHEMA, TriageModelError, made_by)

    def tiff_header(path: Path) -> object:
        content = path.read_bytes()
        return read_tiff_pages(io.BytesIO(content)), foreign_content(content)

    return {
        "bags.csv": ("bags.csv", lambda path: read_manifest(path.parent)),
        "features.csv": ("features.csv", lambda path: read_index(path.parent)),
        "labels.csv": ("labels.csv", read_labels),
        "resolutions": ("mpp.csv", read_resolutions),
        "feedback": ("feedback.csv", read_feedback),
        "params.yaml": ("params.yaml", lambda path: settings.load(params=path)),
        "encoder card": (bundle.CARD_NAME, lambda path: bundle.read_card(path.parent)),
        "triage card": (triage_model.CARD_NAME, triage_card),
        "engine card": ("engine.json", lambda path: read_record(path.parent)),
        "evaluation": ("evaluate.json", lambda path: read_runs([path.parent])),
        "worklist": ("triage.json", lambda path: Triage(path.parent)),
        "review log": ("review.jsonl", lambda path: ReviewLog(path.parent).faults()),
        "geojson": ("cells.geojson", lambda path: read_classes(path, cells)),
        "weights": ("weights.safetensors", read_state),
        "image": ("cell.jpg", lambda path: open_image(path.read_bytes(), "cell")),
        "tiff header": ("slide.tif", tiff_header),
        "hamamatsu index": ("slide.vms", companions_of),
    }


SEALED = frozenset({"encoder card", "triage card", "engine card"})
"""Cards with a checksum. It is made right again, so that the fuzzer reaches what stands behind it."""


def sealed_again(content: bytes) -> bytes:
    """The card with the checksum of its content. Unchanged if it is not a JSON object."""
    from cytomil.files import sealed

    with suppress(ValueError, RecursionError):
        document = json.loads(content)
        if isinstance(document, dict):
            return json.dumps(sealed(document)).encode()
    return content


def target(name: str, folder: Path) -> Callable[[bytes], None]:
    """A function that reads bytes as the reader ``name`` does. It raises whatever is not a `CytomilError`."""
    from cytomil.errors import CytomilError

    file_name, read = readers()[name]
    path = folder / file_name

    def run(content: bytes) -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(sealed_again(content) if name in SEALED else content)
        with suppress(CytomilError):
            read(path)

    return run


def seeds(made: Path) -> Iterator[tuple[str, bytes]]:
    """Files that the verbs wrote (see `bench.mutate.make_files`) and some written here, each for the reader of that name."""
    for name, file in {
        "bags.csv": "bags/bags.csv",
        "features.csv": "features/features.csv",
        "encoder card": "encoder/encoder.json",
        "triage card": "model/triage.json",
        "weights": "encoder/encoder.safetensors",
    }.items():
        for found in sorted(made.glob(file)):
            yield name, found.read_bytes()
    yield "labels.csv", b"slide,label,patient,split,mpp\na,1,p1,train,0.25\nb,0,p2,test,\n"
    yield "resolutions", b"slide,mpp\na.svs,0.25\nb,0.5\n"
    texts = dict.fromkeys(("name", "engine", "precision", "weights_sha256", "device"), "cpu")
    tables = {key: {"a": "b"} for key in ("machine", "versions", "files")} | {"agreement": {"h": {"cosine": 1.0}}}
    numbers = {"image_size": 64, "images_per_second": 9.5, "eager_images_per_second": 3.5, "layers": ["h"]}
    yield "engine card", json.dumps({"schema": "cytomil.engine/2"} | texts | tables | numbers).encode()
    yield "feedback", b"slide,instance_id,verdict\na,x1y2,abnormal\nb,x3y4,normal\n"
    yield "params.yaml", b"pretrain:\n  epochs: 3\n  method: simclr\nprofiles:\n  big:\n    pretrain: {epochs: 9}\n"
    yield "evaluation", b'{"schema": "cytomil.evaluation/1", "seed": 0, "judge": "own", "name": "x", "bags": []}'
    yield (
        "worklist",
        b'{"schema": "cytomil.triage/1", "slides": [{"slide": "a", "call": "review", "key_instances": []}]}',
    )
    yield "review log", b'{"time": "2026-01-01", "reader": "ab", "action": "cell", "slide": "a", "value": "normal"}\n'
    ring = [[5, 5], [15, 5], [15, 15], [5, 15], [5, 5]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": "abnormal"}},
    }
    yield "geojson", json.dumps({"type": "FeatureCollection", "features": [feature]}).encode()
    yield "hamamatsu index", b"[Virtual Microscope Specimen]\nImageFile(0,0)=a.jpg\nMapFile=b.jpg\n"
    yield from (("image", picture) for picture in _pictures("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF"))
    yield from (("tiff header", picture) for picture in _pictures("TIFF"))


def _pictures(*kinds: str) -> Iterator[bytes]:
    from PIL import Image

    for mode, colour in (("RGB", (200, 90, 120)), ("L", 90), ("P", 3), ("RGBA", (1, 2, 3, 4)), ("CMYK", (9, 8, 7, 6))):
        for kind in kinds:
            buffer = io.BytesIO()
            with suppress(OSError, ValueError):  # not every format has every mode
                Image.new(mode, (24, 20), colour).save(buffer, kind)
                yield buffer.getvalue()


def main(name: str, options: list[str]) -> None:
    """Fuzz one reader with libFuzzer until it finds something, or its time is over."""
    import atheris

    with atheris.instrument_imports(include=["cytomil", "yaml", "json", "csv"]):
        readers()
    with tempfile.TemporaryDirectory(dir=_RAM if _RAM.is_dir() else None) as folder:
        atheris.Setup([sys.argv[0], *options], target(name, Path(folder)))
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
