"""rank: assess every slide of a folder and put them in the order in which to read them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cytomil.bags.cell_folder import MIN_CELLS
from cytomil.bags.own_output import mark_own
from cytomil.encoders.engines import Engine, open_engine, open_same_engine
from cytomil.errors import (
    CytomilError,
    NoCellsError,
    SlideUnreadableError,
    TriageModelError,
    WorkersError,
    why_unreadable,
)
from cytomil.features.embedder import Embedder, as_lines, seen_px
from cytomil.file_manifest import require_signature
from cytomil.files import sha256_of_file
from cytomil.mil.ensemble import Assessment, score_shares
from cytomil.mil.novelty import SlideNovelty
from cytomil.mil.triage_model import CARD_NAME, TriageCard, TriageModel, load_triage_model, said_auroc, weaknesses
from cytomil.progress import Listener, Problem, Uncounted
from cytomil.provenance import now, versions
from cytomil.slides import CellFinding, Cutting, Resolutions, read_resolutions
from cytomil.strings import Strings
from cytomil.text import printable
from cytomil.triage.audit import AuditLog
from cytomil.triage.beforehand import work_on
from cytomil.triage.config import RankConfig
from cytomil.triage.pictures import GALLERY_PX, gallery_image
from cytomil.triage.placed import with_places, with_qc
from cytomil.triage.pseudonyms import HIDDEN_FOLDER, pseudonymise
from cytomil.triage.result_cache import ResultCache
from cytomil.triage.sources import CellFolder, Found, SlideSource, discover, open_source
from cytomil.triage.whole_slide import SlideReading, WholeSlide
from cytomil.triage.worklist import Call, KeyInstance, SlideResult, Worklist, in_reading_order
from cytomil.workers import JobContext, WorkerFailure, open_workers

CACHE_FOLDER = "cache"
_MANY_UNREADABLE = 0.05


def rank(
    slide_dir: Path, settings: RankConfig, listener: Listener, on_slide: Callable[[Worklist], None] | None = None
) -> Worklist:
    """Assess every slide in ``slide_dir``. A slide that cannot be assessed is in the worklist, with the reason.

    Finished slides are kept under ``settings.out``, so that a second or an interrupted run reads none of them again; there
    too go each whole slide's heat map, GeoJSON, QC picture and, if asked for, cells. Raises `NotFoundError` where the
    folder holds no slides, `TriageModelError` where the model cannot be used, `SettingsError` for a faulty ``mpp_csv``.
    ``on_slide`` is given the worklist so far after each slide but the last; over Ray it is not called.
    """
    found, ignored = discover(slide_dir, settings.out)
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

    work, units = work_on(found)

    def take(result: SlideResult, is_new: bool) -> None:
        # What was finished before or failed took no time that the others will take.
        (count.step if is_new and units[len(results)] else count.skip)(units[len(results)])
        results.append(result)
        audit.add(model_sha256, result)
        if on_slide is not None and len(results) < len(found):
            on_slide(worklist())

    job = _Ranking(settings, reading, model.card, engine.name, engine.key, (model, engine), take)
    # Over Ray slides are counted where they come back, and nothing is taken.
    with nullcontext(Uncounted()) if settings.ray_address else listener.whole(work) as count:
        answers = open_workers(settings.ray_address).map(job, found, listener, "reading slides", "slides")
    results[:] = [
        _not_assessed(one, WorkersError(answer.reason)) if isinstance(answer, WorkerFailure) else answer
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
        listener.note(f"{settings.mpp_csv} speaks of slides that are not there: {which}")
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


@dataclass(frozen=True)
class _Ranking:
    """The job of assessing slides. ``loaded`` stays in this process: another one loads its own, and it must be the same.

    ``take`` is given each result, and whether it is new; it stays in this process too.
    """

    settings: RankConfig
    reading: SlideReading
    card: TriageCard
    engine: str
    engine_key: str
    loaded: tuple[TriageModel, Engine] | None
    take: Callable[[SlideResult, bool], None] | None

    @property
    def device(self) -> str:
        return self.settings.device

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"loaded": None, "take": None}

    def start(self, context: JobContext) -> Callable[[Iterable[Found]], Iterator[SlideResult]]:
        model, engine = self.loaded or self._load()
        threads = context.threads(self.settings.workers)
        settings = self.settings.model_copy(update={"workers": threads})
        ranker = _Ranker(model, engine, settings, replace(self.reading, workers=threads), context.listener)
        return partial(map, partial(_told, ranker, self.take))

    def _load(self) -> tuple[TriageModel, Engine]:
        model = load_triage_model(self.settings.model)
        if model.card != self.card:
            raise TriageModelError(f"{self.settings.model} is not the same on all machines. Share it between them.")
        return model, open_same_engine(
            model.encoder, model.layer.embedded, self.engine, self.engine_key, self.settings.device
        )


def _told(ranker: _Ranker, take: Callable[[SlideResult, bool], None] | None, found: Found) -> SlideResult:
    result = ranker.assess(found)
    if take is not None:
        take(result, not (ranker.was_finished or result.reason))
    return result


@dataclass(frozen=True)
class _Cells:
    """What remains of a slide's cells once all are read: the names of the readable ones, (N,), and what was made of them.

    ``unreadable`` names the others, each with its reason.
    """

    names: Sequence[str]
    unreadable: Sequence[str]
    assessment: Assessment
    novelty: SlideNovelty


class _Ranker:
    """Assesses slides one after another with one model."""

    def __init__(
        self, model: TriageModel, engine: Engine, settings: RankConfig, reading: SlideReading, listener: Listener
    ) -> None:
        self._model, self._settings, self._reading, self._listener = model, settings, reading, listener
        self._embedder = Embedder(model.encoder, engine, model.layer, "float32", model.orientations)
        shaped_by = {
            "model": model.card.to_json(),
            "top": settings.top,
            "cells_csv": settings.cells_csv,
            "engine": engine.key,
        }
        self._finished = ResultCache(settings.out, reading.cache, shaped_by)
        self.was_finished = False
        """Whether the slide that was assessed last had been finished before."""

    def assess(self, found: Found) -> SlideResult:
        """Assess one slide; whatever is wrong with it becomes its reason."""
        try:
            source, fingerprint = self._open(found)
            kept = self._finished.read(found, fingerprint, self._reading.resolutions.fallback)
            self.was_finished = kept is not None
            if kept is not None:
                return kept
            result = self._assess(found, source)
            self._finished.write(found, fingerprint, source, result)
            return result
        except CytomilError as error:
            return _not_assessed(found, error)

    def _open(self, found: Found) -> tuple[SlideSource, str]:
        try:
            source = open_source(found, self._reading)
            return source, source.fingerprint()
        except OSError as error:
            raise SlideUnreadableError(why_unreadable(found.path, error)) from None

    def _assess(self, found: Found, source: SlideSource) -> SlideResult:
        try:
            cells = self._read(found, source)
        except NoCellsError as error:
            result = _not_assessed(found, error)
            return with_qc(result, source, self._settings.out) if isinstance(source, WholeSlide) else result
        return self._result(found, source, cells)

    def _read(self, found: Found, source: SlideSource) -> _Cells:
        """Every cell through encoder, aggregator and novelty, a block at a time; of each its name and its numbers remain.

        Raises `NoCellsError` where there are too few.
        """
        blocks = source.blocks(self._embedder.preparation, self._settings.batch_size, self._settings.workers)
        told = self._listener.track(blocks, found.name, unit="blocks of cells")
        assessed, judged = self._model.ensemble.begin(), self._model.novelty.begin()
        names = Strings()
        problems: list[Problem] = []
        for block in self._embedder.embedded(found.name, told, problems):
            if block.instance_ids:
                names.extend(block.instance_ids)
                assessed.add(block.values)
                judged.add(block.values)
        unreadable = as_lines(problems)
        if len(names) < MIN_CELLS:
            raise NoCellsError(_too_few(len(names), unreadable))
        assessment = assessed.result()
        if not np.isfinite(assessment.probability):
            raise TriageModelError("the model gives no finite probability for this slide. Fit the model again.")
        return _Cells(names, unreadable, assessment, judged.result())

    def _result(self, found: Found, source: SlideSource, cells: _Cells) -> SlideResult:
        assessment, novelty = cells.assessment, cells.novelty
        result = SlideResult(
            slide=found.name,
            path=found.shown_path,
            call=self._call(assessment.probability, novelty.is_unlike, len(cells.names) < CellFinding.min_cells),
            probability=assessment.probability,
            sha256=source.content_sha256(),
            n_instances=len(cells.names),
            n_unreadable=len(cells.unreadable),
            mpp=source.mpp,
            cautions=tuple(found.hide(caution) for caution in self._cautions(source, cells)),
            is_unlike=novelty.is_unlike,
            novelty_p=novelty.p_value,
            key_instances=self._key_instances(source, cells),
            score_shares=tuple(score_shares(assessment.scores).tolist()),
        )
        if isinstance(source, WholeSlide):
            out, cells_csv = self._settings.out, self._settings.cells_csv
            return with_places(result, source, cells.names, assessment.scores, out, cells_csv)
        return result

    def _call(self, probability: float, is_unlike: bool, is_few: bool) -> Call:
        thresholds = self._model.card.thresholds
        # Of a slide unlike all that it has seen, or of a handful of cells, the model can say neither that it is ill nor not.
        if is_unlike or is_few:
            return Call.REVIEW
        if probability >= thresholds.decision:
            return Call.REVIEW_FIRST
        return Call.REVIEW if probability >= thresholds.low else Call.LOW_PRIORITY

    def _cautions(self, source: SlideSource, cells: _Cells) -> Iterator[str]:
        if cells.novelty.is_unlike:
            yield (
                f"Unlike the training slides: do not rely on its call. {_how_unlike(cells.novelty)} Another specimen, stain, "
                "focus or scanner may be the cause, or far more abnormal cells than any training slide holds."
            )
        n_unreadable = len(cells.unreadable)
        n = len(cells.names) + n_unreadable
        if n_unreadable:
            care = "read with care: " if n_unreadable > _MANY_UNREADABLE * n else ""
            yield f"{care}{n_unreadable} of {n} cells could not be read (first: {cells.unreadable[0]})"
        if len(cells.names) < CellFinding.min_cells:
            yield f"few cells: {len(cells.names)}, where a whole slide needs {CellFinding.min_cells}; read all of them"
        if isinstance(source, CellFolder):
            yield from source.cautions()

    def _key_instances(self, source: SlideSource, cells: _Cells) -> tuple[KeyInstance, ...]:
        scores = cells.assessment.scores
        top = np.argsort(-scores, kind="stable")[: self._settings.top]
        ids = [cells.names[i] for i in top]
        return tuple(
            KeyInstance(name, float(scores[i]), gallery_image(image, name), why=self._why(scores[i], i, cells.novelty))
            for i, name, image in zip(top, ids, source.images(ids, GALLERY_PX), strict=True)
        )

    def _why(self, score: float, cell: int, novelty: SlideNovelty) -> str:
        if novelty.is_unlike:
            return "scores highest here, but the slide is unlike the training slides: not comparable with theirs"
        edges, shares = self._model.card.score_bin_edges, self._model.card.reference_shares
        # From the lower edge of the score's own bin on, so that rarity is understated rather than overstated.
        share = sum(share for upper, share in zip(edges[1:], shares, strict=True) if score < upper)
        as_high = f"about 1 in {1 / share:,.0f}" if share > 0 else "none"
        why = f"{as_high} of the cells on normal training slides scores as high"
        return f"{why}; unlike the cells the model has seen" if novelty.is_beyond[cell] else why


def _how_unlike(novelty: SlideNovelty) -> str:
    odds = "fewer than 1 in 1,000" if novelty.p_value < 1e-3 else f"about 1 in {1 / novelty.p_value:,.0f}"
    return f"Of slides like the training ones, {odds} would lie as far from them."


def _not_assessed(found: Found, error: CytomilError) -> SlideResult:
    reason = found.hide(str(error).removeprefix(f"{found.path}: "))
    return SlideResult(found.name, found.shown_path, Call.NOT_ASSESSED, reason=printable(reason))


def _too_few(n: int, unreadable: Sequence[str]) -> str:
    first = f" {len(unreadable)} could not be read (first: {unreadable[0]})" if unreadable else ""
    return f"too few cells: {n or 'none'}, at least {MIN_CELLS} are needed.{first}"
