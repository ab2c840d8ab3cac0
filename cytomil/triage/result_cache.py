"""Finished slides on disk, so that a second run, or one that goes on after an interruption, reads none of them again."""

from __future__ import annotations

import base64
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cytomil.bags.whole_slides import CELL_LIBRARIES
from cytomil.cards import Card, Count, Flag, Fraction, Number, Text, library_versions
from cytomil.files import is_sealed, read_json, sha256_of_json, write_json_card
from cytomil.triage.sources import SlideEntry, SlideSource
from cytomil.triage.worklist import Call, KeyInstance, SlideResult, TeachingCell

SCHEMA = "cytomil.slide-result/1"
RESULT_VERSION = 2
"""Raise it with every change by which a slide gets another result, picture or file from the same model and settings.

Changes in how cells are found, cut, embedded or assessed count too. `tests/unchanged.json` holds the version that its
worklists are of.
"""
LIBRARIES = ("torch", "torchvision", "timm", "scikit-learn", *CELL_LIBRARIES)


class _Cell(Card):
    """`KeyInstance` with its pictures in base64."""

    instance_id: Text
    score: Number
    image: Text
    x_px: Number | None
    y_px: Number | None
    x_um: Number | None
    y_um: Number | None
    why: Text
    context: Text | None

    def as_cell(self) -> KeyInstance:
        return KeyInstance(**_fields(self) | {"image": _decoded(self.image) or b"", "context": _decoded(self.context)})


class _Taught(Card):
    """`TeachingCell`."""

    instance_id: Text
    score: Number


class _Result(Card):
    """`SlideResult` with its pictures in base64."""

    slide: Text
    path: Text
    call: Call
    probability: Fraction | None
    reason: Text
    sha256: Text
    n_instances: Count
    n_unreadable: Count
    n_at_edge: Count
    mpp: Number | None
    mpp_given: Flag
    cautions: tuple[Text, ...]
    is_unlike: Flag
    novelty_p: Number | None
    key_instances: tuple[_Cell, ...]
    to_teach: tuple[_Taught, ...] = ()
    score_shares: tuple[Fraction, ...]
    thumbnail: Text | None
    qc_picture: Text | None
    files: dict[str, Text]

    def as_result(self) -> SlideResult:
        return SlideResult(
            **_fields(self)
            | {
                "key_instances": tuple(cell.as_cell() for cell in self.key_instances),
                "to_teach": tuple(TeachingCell(cell.instance_id, cell.score) for cell in self.to_teach),
                "thumbnail": _decoded(self.thumbnail),
                "qc_picture": _decoded(self.qc_picture),
            }
        )


class _ResultCard(Card):
    """A finished slide's card. ``assumed_mpp``: as in `SlideSource`."""

    key: Text
    assumed_mpp: Number | None
    result: _Result


class ResultCache:
    """Results by slide name. ``shaped_by`` is what shapes a result besides the slide, `RESULT_VERSION` and `LIBRARIES`."""

    def __init__(self, out: Path, folder: Path, shaped_by: dict[str, Any]) -> None:
        self._out, self._folder = out, folder
        self._shaped_by = sha256_of_json([shaped_by, RESULT_VERSION, library_versions(*LIBRARIES)])

    def read(self, found: SlideEntry, fingerprint: str, fallback_mpp: float | None) -> SlideResult | None:
        """The finished result of this slide, if it is still the same and the files written of it are still there."""
        try:
            document = read_json(self._file(found))
            kept = _ResultCard.model_validate(document)
            if not is_sealed(document) or kept.key != self._key(found, fingerprint):
                return None
            if kept.assumed_mpp not in (None, fallback_mpp):
                return None
            result = kept.result.as_result()
        except (OSError, ValueError):  # a card with a wrong field is a ValueError
            return None
        if not all((self._out / file).is_file() for file in result.files.values()):
            return None
        return replace(result, path=found.shown_path)

    def write(self, found: SlideEntry, fingerprint: str, source: SlideSource, result: SlideResult) -> None:
        """Keep a finished slide."""
        document = {
            "schema": SCHEMA,
            "key": self._key(found, fingerprint),
            "assumed_mpp": source.assumed_mpp,
            "result": _to_json(result),
        }
        write_json_card(self._file(found), document)

    def _file(self, found: SlideEntry) -> Path:
        return self._folder / f"{sha256_of_json(found.name)[:16]}.json"

    def _key(self, found: SlideEntry, fingerprint: str) -> str:
        return sha256_of_json([SCHEMA, found.name, fingerprint, self._shaped_by])


def _to_json(result: SlideResult) -> dict[str, Any]:
    cells = [
        asdict(cell) | {"image": _encoded(cell.image), "context": _encoded(cell.context)}
        for cell in result.key_instances
    ]
    pictures = {"thumbnail": _encoded(result.thumbnail), "qc_picture": _encoded(result.qc_picture)}
    return asdict(replace(result, key_instances=())) | {"key_instances": cells} | pictures


def _fields(card: Card) -> dict[str, Any]:
    """The fields without keys that are unknown to this version."""
    return {name: getattr(card, name) for name in type(card).model_fields}


def _encoded(picture: bytes | None) -> str | None:
    return None if picture is None else base64.b64encode(picture).decode()


def _decoded(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)
