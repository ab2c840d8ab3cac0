"""rank: assess every slide of a folder and put them in the order in which to read them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from cytomil.bags.images import open_image
from cytomil.errors import CytomilError, NoCellsError, TriageModelError
from cytomil.features.cache import Features, is_valid, open_features
from cytomil.features.embedder import Embedder
from cytomil.files import sha256_of_json
from cytomil.mil.ensemble import score_shares
from cytomil.mil.triage_model import TriageModel, load_triage_model
from cytomil.progress import Listener, Problem
from cytomil.provenance import now, versions
from cytomil.settings import RankSettings
from cytomil.triage.sources import Found, SlideSource, discover, open_source, unreadable_summary
from cytomil.triage.worklist import Call, KeyInstance, SlideResult, Worklist, in_reading_order

CACHE_FOLDER = "cache"
_GALLERY_PX = 96
_MANY_UNREADABLE = 0.05


def rank(slide_dir: Path, settings: RankSettings, listener: Listener) -> Worklist:
    """Assess every slide in ``slide_dir``. A slide that cannot be assessed is in the worklist, with the reason.

    Embeddings are cached under ``settings.out``, so that a second or an interrupted run reads no finished slide again.
    Raises `NotFoundError` where the folder holds no slides, `TriageModelError` where the model cannot be used.
    """
    found, ignored = discover(slide_dir)
    model = load_triage_model(settings.model)
    if ignored:
        listener.note(f"not slides, left alone: {', '.join(ignored)}")
    ranker = _Ranker(model, settings)
    results = [ranker.assess(one) for one in listener.track(found, "reading slides", unit="slides")]
    thresholds = model.card["thresholds"]
    return Worklist(
        folder=str(slide_dir),
        created=now(),
        slides=in_reading_order(results),
        threshold=thresholds["decision"],
        low_threshold=thresholds["low"],
        model_card=model_card(model),
        settings=settings.model_dump(mode="json"),
        versions=versions(),
        score_bin_edges=tuple(model.card["score_bin_edges"]),
        reference_shares=tuple(model.card["reference_shares"]),
    )


def model_card(model: TriageModel) -> dict[str, object]:
    """What the model says of itself, for a reader: on what it learnt, when, how well it did on held-out slides."""
    card, encoder = model.card, model.encoder.card
    held_out = {key: card["held_out"][key] for key in ("auroc", "f1", "sensitivity", "specificity")}
    return {
        "synthetic": card["synthetic"],
        "collapsed": card["collapsed"],
        "trained_on": card["trained_on"],
        "made": card["made"],
        "score_meaning": card["score_meaning"],
        "method": encoder["method"],
        "image_size_px": encoder["transform"]["image_size"],
        "held_out_training_slides": held_out,
        "thresholds": card["thresholds"],
        "limits": card["limits"],
    }


class _Ranker:
    """Assesses slides one after another with one model."""

    def __init__(self, model: TriageModel, settings: RankSettings) -> None:
        self._model, self._settings = model, settings
        self._embedder = Embedder(model.encoder, model.layer, "float32", settings.device)

    def assess(self, found: Found) -> SlideResult:
        """Assess one slide; whatever is wrong with it becomes its reason."""
        try:
            source = open_source(found)
            features, problems = self._features(found, source)
            if len(features) == 0:
                raise NoCellsError(f"none of its {len(problems)} cell images can be read.")
            return self._result(found, source, features, problems)
        except CytomilError as error:
            return SlideResult(found.name, str(found.path), Call.NOT_ASSESSED, reason=str(error))

    def _features(self, found: Found, source: SlideSource) -> tuple[Features, list[Problem]]:
        fingerprint = source.fingerprint()
        cache = self._settings.out / CACHE_FOLDER / f"{sha256_of_json(found.name)[:16]}.h5"
        if not is_valid(cache, self._embedder.key(fingerprint)):
            blocks = source.blocks(self._model.encoder.transform, self._settings.batch_size)
            self._embedder.embed(cache, found.name, fingerprint, blocks, source.mpp)
        features = open_features(cache)
        return features, [Problem(name, "could not be read") for name in features.unreadable]

    def _result(self, found: Found, source: SlideSource, features: Features, problems: list[Problem]) -> SlideResult:
        assessment = self._model.ensemble.assess(features.load())
        if not np.isfinite(assessment.probability):
            raise TriageModelError("the model gives no finite probability for this slide. Fit the model again.")
        cautions = []
        if len(problems) > _MANY_UNREADABLE * (len(features) + len(problems)):
            cautions.append(f"read with care: {unreadable_summary(problems, len(features))}")
        return SlideResult(
            slide=found.name,
            path=str(found.path),
            call=self._call(assessment.probability),
            probability=assessment.probability,
            n_instances=len(features),
            n_unreadable=len(problems),
            mpp=features.mpp,
            cautions=tuple(cautions),
            key_instances=self._key_instances(source, features, assessment.scores),
            score_shares=tuple(score_shares(assessment.scores).tolist()),
        )

    def _call(self, probability: float) -> Call:
        thresholds = self._model.card["thresholds"]
        if probability >= thresholds["decision"]:
            return Call.REVIEW_FIRST
        return Call.REVIEW if probability >= thresholds["low"] else Call.LOW_PRIORITY

    def _key_instances(self, source: SlideSource, features: Features, scores: np.ndarray) -> tuple[KeyInstance, ...]:
        top = np.argsort(-scores, kind="stable")[: self._settings.top]
        ids = [features.instance_ids[i] for i in top]
        return tuple(
            KeyInstance(name, float(scores[i]), _gallery_image(image, name))
            for i, name, image in zip(top, ids, source.images(ids), strict=True)
        )


def _gallery_image(encoded: bytes, name: str) -> bytes:
    image = open_image(encoded, name)
    image.thumbnail((_GALLERY_PX, _GALLERY_PX))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()
