"""rank: assess every slide of a folder and put them in the order in which to read them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from pathlib import Path

from cytomil.bags.own_output import mark_own
from cytomil.encoders.engines import open_engine
from cytomil.errors import (
    TriageModelError,
    WorkersError,
)
from cytomil.features.embedder import seen_px
from cytomil.file_manifest import require_signature
from cytomil.files import sha256_of_file
from cytomil.mil.triage_model import CARD_NAME, TriageModel, load_triage_model, said_auroc, weaknesses
from cytomil.progress import Listener, Uncounted
from cytomil.provenance import now, versions
from cytomil.slides import Cutting, Resolutions, read_resolutions
from cytomil.text import printable
from cytomil.triage.apart import ReadingProcess
from cytomil.triage.assess import Ranking, not_assessed
from cytomil.triage.audit import AuditLog
from cytomil.triage.beforehand import work_on
from cytomil.triage.config import RankConfig
from cytomil.triage.pseudonyms import HIDDEN_FOLDER, pseudonymise
from cytomil.triage.sources import Found, discover
from cytomil.triage.whole_slide import SlideReading
from cytomil.triage.worklist import SlideResult, Worklist, in_reading_order
from cytomil.workers import WorkerFailure, open_workers

CACHE_FOLDER = "cache"


def rank(
    slide_dir: Path,
    settings: RankConfig,
    listener: Listener,
    on_slide: Callable[[Worklist], None] | None = None,
    only: Collection[str] | None = None,
) -> Worklist:
    """Assess every slide in ``slide_dir``. A slide that cannot be assessed is in the worklist, with the reason.

    Finished slides are kept under ``settings.out``, so that a second or an interrupted run reads none of them again; there
    too go each whole slide's heat map, GeoJSON, QC picture and, if asked for, cells. Raises `NotFoundError` where the
    folder holds no slides, `TriageModelError` where the model cannot be used, `SettingsError` for a faulty ``mpp_csv``.
    ``on_slide`` is given the worklist so far after each slide but the last; over Ray it is not called. With ``only``,
    slides of other names are left alone.
    """
    with ReadingProcess() as process:  # first, because it starts while the model is loaded
        return _rank(slide_dir, settings, listener, on_slide, only, process)


def _rank(
    slide_dir: Path,
    settings: RankConfig,
    listener: Listener,
    on_slide: Callable[[Worklist], None] | None,
    only: Collection[str] | None,
    process: ReadingProcess,
) -> Worklist:
    found, ignored = discover(slide_dir, settings.out)
    if only is not None:
        found = [one for one in found if one.real_name in only]
    if settings.pseudonymise is not None:
        found = pseudonymise(found, slide_dir, settings.pseudonymise, settings.out)
    if settings.require_signature is not None:
        require_signature(settings.model, settings.require_signature)
    model = load_triage_model(settings.model)
    if model.encoder.card.uses_instance_labels:
        raise TriageModelError(
            f"{settings.model} was shown instance labels when its encoder was trained ({model.encoder.card.method}): a "
            "ceiling to compare with, not a model to read slides by. Train with a method that learns from slide labels."
        )
    if ignored:
        listener.note(f"not slides, left alone: {len(ignored) if settings.pseudonymise else ', '.join(ignored)}")
    mark_own(settings.out)
    reading = _reading(model, settings, found, listener)
    engine = open_engine(model.encoder, model.layer.embedded, settings.engine, settings.device, listener.note)
    if model.card.engine not in (None, engine.key):
        listener.note(
            f"cells are embedded with {engine.key}; the model was fitted to embeddings of {model.card.engine}"
        )
    results: list[SlideResult] = []
    audit, model_sha256 = AuditLog(settings.out), sha256_of_file(model.path / CARD_NAME)
    audit.begin(model_sha256, len(found))

    def worklist() -> Worklist:
        return _worklist(slide_dir, settings, model, engine.key, results, len(found) - len(results))

    work, units = work_on(found, process)

    def take(result: SlideResult, is_new: bool) -> None:
        # What was finished before or failed took no time that the others will take.
        (count.step if is_new and units[len(results)] else count.skip)(units[len(results)])
        results.append(result)
        audit.add(model_sha256, result)
        if on_slide is not None and len(results) < len(found):
            on_slide(worklist())

    job = Ranking(settings, reading, model.card, engine.name, engine.key, (model, engine, process), take)
    # Over Ray slides are counted where they come back, and nothing is taken.
    with nullcontext(Uncounted()) if settings.ray_address else listener.whole(work) as count:
        answers = open_workers(settings.ray_address).map(job, found, listener, "reading slides", "slides")
    results[:] = [
        not_assessed(one, WorkersError(answer.reason)) if isinstance(answer, WorkerFailure) else answer
        for one, answer in zip(found, answers, strict=True)
    ]
    if settings.ray_address:
        for result in results:
            audit.add(model_sha256, result)
    return worklist()


def _worklist(
    slide_dir: Path,
    settings: RankConfig,
    model: TriageModel,
    engine_key: str,
    results: Sequence[SlideResult],
    unread: int,
) -> Worklist:
    card = model.card
    return Worklist(
        folder=HIDDEN_FOLDER if settings.pseudonymise else printable(str(slide_dir)),
        created=now(),
        slides=in_reading_order(results),
        unread=unread,
        threshold=card.thresholds.decision,
        low_threshold=card.thresholds.low,
        model_card=model_card(model) | {"engine": engine_key},
        # Where the work was done shapes nothing of it, and where the key file lies is nobody's business.
        settings=settings.model_dump(mode="json", exclude_none=True, exclude={"ray_address", "pseudonymise"}),
        versions=versions(),
        score_bin_edges=card.score_bin_edges,
        reference_shares=card.reference_shares,
        threshold_range=card.thresholds.decision_range,
        low_threshold_range=card.thresholds.low_range,
        weaknesses=weaknesses(card.trained_on.bags, card.held_out),
        held_out=said_auroc(card.held_out),
        synthetic=card.synthetic,
        collapsed=card.collapsed,
        score_meaning=card.score_meaning,
    )


def _reading(model: TriageModel, settings: RankConfig, found: Sequence[Found], listener: Listener) -> SlideReading:
    given = read_resolutions(settings.mpp_csv) if settings.mpp_csv else {}
    names = {name for one in found for name in (one.path.name, one.path.stem)}
    if unknown := sorted(set(given) - names):
        which = len(unknown) if settings.pseudonymise else ", ".join(unknown)
        listener.note(f"{settings.mpp_csv} names slides that do not exist: {which}")
    cutting = model.cutting
    if cutting is None and settings.crop_um is not None:
        transform = model.encoder.transform
        # As fine as what is looked at, the part that the encoder's transform cuts off included.
        crop_px = math.ceil(seen_px(model.layer, transform.image_size) / transform.center_crop)
        cutting = Cutting(settings.crop_um, crop_px, settings.diameter_um or Cutting.diameter_um)
    elif settings.crop_um is not None or settings.diameter_um is not None:
        carried = (
            ""
            if cutting is None
            else f": the model carries its own, {cutting.crop_um:g} and {cutting.diameter_um:g} µm"
        )
        listener.note(f"--crop-um and --diameter-um are not used{carried}")
    cache = settings.out / CACHE_FOLDER
    return SlideReading(cutting, Resolutions(given, settings.mpp), cache, settings.workers)


def model_card(model: TriageModel) -> dict[str, object]:
    """What the model says of itself, for a reader: on what it learnt, when, how well it did on held-out slides."""
    card, encoder = model.card, model.encoder.card
    shown = ("auroc", "auroc_interval", "f1", "sensitivity", "specificity")
    plain = card.to_json()
    return {
        "fitted_with_engine": card.engine,
        "synthetic": card.synthetic,
        "collapsed": card.collapsed,
        "trained_on": plain["trained_on"],
        "made": card.made,
        "score_meaning": card.score_meaning,
        "method": encoder.method,
        "image_size_px": encoder.transform.image_size,
        "held_out_training_slides": {key: plain["held_out"][key] for key in shown},
        "thresholds": plain["thresholds"],
        "limits": plain["limits"],
        "model_sha256": sha256_of_file(model.path / CARD_NAME),
        "aggregator_sha256": card.aggregator_sha256,
        "encoder_sha256": card.encoder_sha256,
    }
