"""Checks of bags, features, encoders and triage models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from cytomil.bags.fitted import Fitted, FittedBag
from cytomil.bags.made import CARDS_FOLDER, RECORD_NAME
from cytomil.bags.manifest import MANIFEST_NAME, manifest_text, open_unaltered, read_manifest
from cytomil.encoders import bundle
from cytomil.encoders.bundle import EncoderBundle, load_bundle, stored_engines
from cytomil.encoders.engines.record import read_record
from cytomil.errors import CytomilError, TriageModelError
from cytomil.features.index import INDEX_NAME, FeatureIndex, index_text, read_index
from cytomil.features.origin import RECORD_NAME as EMBED_NAME
from cytomil.features.origin import contradictions, read_embed_record
from cytomil.file_manifest import NAME as FILES_NAME
from cytomil.file_manifest import altered_files
from cytomil.files import sha256_of_file
from cytomil.mil import triage_model
from cytomil.mil.triage_model import load_triage_model
from cytomil.verification.checked import Checked, as_written, attempt, has_seal, sealed_json

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
    record = folder / RECORD_NAME
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
