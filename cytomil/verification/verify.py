"""verify: finds what cytomil wrote below a folder, and checks it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cytomil.bags.manifest import (
    CARDS_FOLDER,
    MANIFEST_NAME,
    Fitted,
    FittedBag,
    manifest_text,
    open_unaltered,
    read_manifest,
)
from cytomil.bags.manifest import RECORD_NAME as MADE_NAME
from cytomil.chained_log import ChainedLog
from cytomil.encoders import bundle
from cytomil.encoders.bundle import EncoderBundle, load_bundle, stored_engines
from cytomil.encoders.engines.record import read_record
from cytomil.errors import CytomilError, NotFoundError, TriageModelError, require_folder, why_unreadable
from cytomil.evaluation.record import RECORD_NAME as EVALUATED_NAME
from cytomil.features.index import INDEX_NAME, FeatureIndex, contradictions, index_text, read_embed_record, read_index
from cytomil.features.index import RECORD_NAME as EMBED_NAME
from cytomil.file_manifest import NAME as FILES_NAME
from cytomil.file_manifest import altered_files, require_signature
from cytomil.files import SEAL, is_sealed, json_text, read_json, sha256_of_file
from cytomil.mil import triage_model
from cytomil.mil.triage_model import load_triage_model
from cytomil.progress import Listener, Problem
from cytomil.review.log import ReviewLog
from cytomil.text import is_inside
from cytomil.triage.rank import CACHE_FOLDER
from cytomil.triage.whole_slide import kept_cells
from cytomil.triage.write import CSV_NAME, FILES_KEY, REPORT_NAME, WORKLIST_NAME, AuditLog
from cytomil.validation.write import FILES_KEY as VALIDATION_FILES_KEY
from cytomil.validation.write import RECORD_NAME as VALIDATION_NAME

T = TypeVar("T")


@dataclass(frozen=True)
class Checked:
    """A file, and what is wrong with it and what to do, as the end of a sentence; "" if nothing is."""

    file: Path
    fault: str = ""


def attempt(file: Path, read: Callable[[], T]) -> tuple[T | None, Checked]:
    """Read a file with cytomil's own reader. An error of the reader becomes a finding on ``file``."""
    try:
        return read(), Checked(file)
    except CytomilError as error:
        return None, Checked(file, str(error).removeprefix(f"{file}: ").removeprefix(f"{file} "))
    except OSError as error:
        return None, Checked(file, why_unreadable(file, error))


def sealed_json(file: Path, made_by: str) -> Checked:
    """Whether a sealed JSON file is as it was written, to the byte."""
    again = f"Make it again with `{made_by}`."
    try:
        document = read_json(file)
        same = is_sealed(document) and json_text(document) == file.read_text(encoding="utf-8")
    except OSError as error:
        return Checked(file, why_unreadable(file, error))
    except ValueError as error:
        return Checked(file, f"is damaged ({str(error)[:200]}). {again}")
    return Checked(file, "" if same else f"was altered or damaged: its checksum does not match. {again}")


def has_seal(file: Path, beside: str) -> bool:
    """Whether a version that seals this JSON file wrote it. Such a file also has the key ``beside``."""
    try:
        document = read_json(file)
    except (OSError, ValueError):
        return True
    return not isinstance(document, dict) or SEAL in document or beside in document


def as_written(file: Path, text: str, made_by: str) -> Iterator[Checked]:
    """Whether a table is the ``text`` that its own rows make, to the byte."""
    if file.read_text(encoding="utf-8") != text:
        yield Checked(file, f"was edited or damaged. Make it again with `{made_by}`.")
    else:
        yield Checked(file)


_BAGS, _EMBED, _ENCODER, _MODEL = "cytomil make-bags", "cytomil embed", "cytomil pretrain", "cytomil fit-mil"


def check_bags(folder: Path) -> Iterator[Checked]:
    """bags.csv, every bag against its row and its hash, make-bags.json and the cards of finished slides."""
    path = folder / MANIFEST_NAME
    manifest, found = attempt(path, partial(read_manifest, folder))
    yield found
    if manifest is not None:
        with_seals = "checksum" in path.read_text(encoding="utf-8").partition("\n")[0]
        if with_seals:
            yield from as_written(path, manifest_text(manifest.rows), _BAGS)
        for row in manifest.rows:
            yield attempt(manifest.file_of(row), partial(open_unaltered, manifest, row))[1]
        listed = {row.path for row in manifest.rows}
        for file in sorted(folder.glob("*.h5")):
            if file.name not in listed:
                yield Checked(file, f"is not listed in {MANIFEST_NAME}. Move it elsewhere.")
    record = folder / MADE_NAME
    if record.is_file() and has_seal(record, "notes"):
        yield sealed_json(record, _BAGS)
    for card in sorted((folder / CARDS_FOLDER).glob("*.json")):
        yield sealed_json(card, _BAGS)


def check_features(folder: Path) -> Iterator[Checked]:
    """features.csv, every cache against its row, embed.json, and that encoder and bags are those that embed.json names."""
    path = folder / INDEX_NAME
    index, found = attempt(path, partial(read_index, folder))
    yield found
    record, found = attempt(folder / EMBED_NAME, partial(read_embed_record, folder))
    if record is not None:
        yield sealed_json(folder / EMBED_NAME, _EMBED)
    elif found.fault:
        yield found
    if index is None:
        return
    yield from as_written(path, index_text(index.rows), _EMBED)
    made_by = set()
    for row in index.rows:
        features, found = attempt(folder / row.path, partial(index.open_row, row))
        if features is not None:
            made_by.add(features.key.encoder_sha256)
            if record and features.key.encoder_sha256 != record.encoder_sha256:
                found = Checked(
                    found.file, f"was made by another encoder than {EMBED_NAME} names. Run `{_EMBED}` again."
                )
        yield found
    if len(made_by) > 1:
        yield Checked(path, f"lists features of {len(made_by)} encoders. Run `{_EMBED}` again.")
    yield from _against_bags(path, index)
    if record is None or not record.encoder:
        return
    card = folder / record.encoder / bundle.CARD_NAME
    encoder, _ = attempt(card, partial(bundle.read_card, card.parent)) if card.is_file() else (None, None)
    if encoder is not None:
        if encoder.weights_sha256 != record.encoder_sha256:
            yield Checked(
                path, f"lists features of another encoder than {card.parent.resolve()}. Run `{_EMBED}` again."
            )
        yield from _unseen(path, "encoder", encoder.data.fitted_to, index)


def _against_bags(path: Path, index: FeatureIndex) -> Iterator[Checked]:
    try:
        for contradiction in contradictions(index):
            yield Checked(path, contradiction)
    except CytomilError as error:
        yield Checked(path, f"cannot be compared with its bags: {error}")


def check_encoder(folder: Path) -> Iterator[Checked]:
    """encoder.json, the weights against it, and the files of each engine."""
    path = folder / bundle.CARD_NAME
    card, found = attempt(path, partial(bundle.read_card, folder))
    if card is None:
        yield found
        return
    yield sealed_json(path, _ENCODER)
    encoder, found = attempt(folder / bundle.WEIGHTS_NAME, partial(load_bundle, folder))
    yield found
    if encoder is None:
        return
    for name in stored_engines(folder):
        yield from _engine(encoder, folder / bundle.ENGINES_FOLDER / name)


def _engine(encoder: EncoderBundle, folder: Path) -> Iterator[Checked]:
    card, made_by = folder / bundle.ENGINE_CARD_NAME, "cytomil compile"
    record, found = attempt(card, partial(read_record, folder))
    if record is None:
        yield found
        return
    if record.weights_sha256 != encoder.sha256:
        yield Checked(card, f"was made for other weights. Run `{made_by}` again.")
    else:
        yield sealed_json(card, made_by)
    for name, sha256 in record.files.items():
        file = folder / name
        same = file.is_file() and sha256_of_file(file) == sha256
        yield Checked(file, "" if same else f"is missing or damaged. Run `{made_by}` again.")


def check_model(folder: Path) -> Iterator[Checked]:
    """triage.json, the weights and manifest.json, and that no test bag had a part in fitting. Its encoder is checked apart."""
    card = folder / triage_model.CARD_NAME
    model, found = attempt(card, partial(load_triage_model, folder))
    yield sealed_json(card, _MODEL) if model is not None else found
    if (folder / FILES_NAME).is_file():
        yield sealed_json(folder / FILES_NAME, _MODEL)
        files, found = attempt(folder / FILES_NAME, lambda: list(altered_files(folder, TriageModelError, _MODEL)))
        yield from (Checked(*one) for one in files) if files is not None else (found,)
    features = folder / model.card.features if model and model.card.features else None
    if model is None or features is None or not (features / INDEX_NAME).is_file():
        return
    index, _ = attempt(features / INDEX_NAME, partial(read_index, features))
    if index is not None:
        yield from _unseen(card, "model", model.card.fitted_to, index)
        yield from _unseen(card, "encoder inside", model.encoder.card.data.fitted_to, index)


def _unseen(file: Path, what: str, fitted_to: Iterable[FittedBag], index: FeatureIndex) -> Iterator[Checked]:
    """A finding for each test bag of features.csv, or of the bags.csv it was made from, that had a part in fitting."""
    fitted = Fitted(fitted_to)
    tested = {row.bag_id: (row.bag_sha256, row.patient_id) for row in index.rows if row.split == "test"}
    record, _ = attempt(index.folder / EMBED_NAME, partial(read_embed_record, index.folder))
    if record and record.bags and (index.folder / record.bags / MANIFEST_NAME).is_file():
        manifest, _ = attempt(index.folder, partial(read_manifest, index.folder / record.bags))
        tested |= {row.bag_id: (row.sha256, row.patient_id) for row in (manifest.select("test") if manifest else ())}
    for bag_id, (sha256, patient_id) in sorted(tested.items()):
        if seen := fitted.seen(sha256, patient_id):
            yield Checked(
                file,
                f"bag '{bag_id}' is a test bag, but {seen} had a part in fitting the {what}. Fit again without it.",
            )


def check_reports(folder: Path) -> Iterator[Checked]:
    """evaluate.json, and the files that were written with it."""
    yield from _record_with_files(folder, EVALUATED_NAME, "files", "cytomil evaluate")


def check_worklist(folder: Path) -> Iterator[Checked]:
    """triage.json, the files that were written with it, finished slides, and the logs of rank and of the review."""
    yield from _record_with_files(folder, WORKLIST_NAME, FILES_KEY, "cytomil rank")
    for card in sorted((folder / CACHE_FOLDER).glob("*.json")):
        yield sealed_json(card, "cytomil rank")
    for cells in sorted((folder / CACHE_FOLDER).glob("*.cells.npz")):
        yield Checked(cells, "" if kept_cells(cells) else "is damaged. Delete it; the next run finds the cells again.")
    logs: tuple[ChainedLog[Any], ...] = (AuditLog(folder), ReviewLog(folder))
    for log in logs:
        if log.path.is_file():
            yield Checked(log.path)
            for fault in log.faults():
                yield Checked(log.path, f"{fault.removeprefix(f'{log.path}')}. Restore it from a backup.".lstrip(":, "))


def check_validation(folder: Path) -> Iterator[Checked]:
    """validation.json, and the page and pictures that were written with it."""
    yield from _record_with_files(folder, VALIDATION_NAME, VALIDATION_FILES_KEY, "cytomil validate")


def _record_with_files(folder: Path, name: str, key: str, made_by: str) -> Iterator[Checked]:
    file = folder / name
    if not has_seal(file, key):
        return  # an earlier version wrote it
    found = sealed_json(file, made_by)
    yield found
    if found.fault:
        return
    for path, sha256 in read_json(file).get(key, {}).items():
        written = folder / path
        same = is_inside(path) and written.is_file() and sha256_of_file(written) == sha256
        yield Checked(written, "" if same else f"is not the file that was written with {name}. Run `{made_by}` again.")


_CHECKS: tuple[tuple[tuple[str, ...], Callable[[Path], Iterator[Checked]]], ...] = (
    ((MANIFEST_NAME, MADE_NAME), check_bags),
    ((bundle.CARD_NAME, bundle.WEIGHTS_NAME), check_encoder),
    ((INDEX_NAME, EMBED_NAME), check_features),
    ((triage_model.WEIGHTS_NAME,), check_model),
    ((EVALUATED_NAME,), check_reports),
    ((CSV_NAME, REPORT_NAME), check_worklist),
    ((VALIDATION_NAME,), check_validation),
)
"""Per kind of folder, the files of which one identifies it, and its check. A triage model and a worklist share triage.json."""


@dataclass(frozen=True)
class Verified:
    """How many files were read, and what does not fit, each with its file and what to do."""

    n_files: int
    findings: tuple[Problem, ...]


def verify(folder: Path, listener: Listener, public_key: Path | None = None) -> Verified:
    """Check every folder of bags, features, encoder, triage model, reports, worklist or validation in ``folder`` and below.

    Hidden folders are passed over. With ``public_key``, every triage model must be signed with that key. Nothing is written.

    Raises:
        NotFoundError: there is no such folder, or it holds none of these.
    """
    require_folder(folder, "cytomil init")
    found = [(place, check) for place in _folders(folder) for check in _checks_of(place)]
    if not found:
        raise NotFoundError(
            f"{folder} holds no bags, features, encoder, triage model, reports, worklist or validation of cytomil."
        )
    files: set[Path] = set()
    findings: dict[Problem, None] = {}
    for place, check in listener.track(found, "verifying", unit="folders"):
        checked = list(check(place))
        if check is check_model and public_key is not None:
            checked.append(attempt(place, lambda: require_signature(place, public_key))[1])  # noqa: B023 called at once
        files |= {one.file for one in checked if one.file != place}
        findings |= {Problem(str(one.file), one.fault): None for one in checked if one.fault}
    return Verified(len(files), tuple(findings))


def _folders(folder: Path) -> Iterator[Path]:
    for place, below, _ in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield Path(place)


def _checks_of(place: Path) -> list[Callable[[Path], Iterator[Checked]]]:
    return [check for names, check in _CHECKS if any((place / name).is_file() for name in names)]
