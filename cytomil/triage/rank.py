"""rank: assess every slide of a folder and put them in the order in which to read them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from cytomil.cards import now, versions
from cytomil.encoders.engines import Engine, open_engine
from cytomil.errors import (
    SettingsError,
    TriageModelError,
    WorkersError,
)
from cytomil.features.embed import max_image_px
from cytomil.file_manifest import require_signature
from cytomil.files import sha256_of_file
from cytomil.litter import mark_own
from cytomil.mil.triage_model import CARD_NAME, TriageModel, auroc_text, load_triage_model, weaknesses
from cytomil.progress import Listener, Uncounted, Work
from cytomil.slides import Cutting, Resolutions, read_resolutions
from cytomil.text import printable
from cytomil.triage.apart import ReadingProcess
from cytomil.triage.assess import Ranking, not_assessed
from cytomil.triage.config import RankConfig
from cytomil.triage.identities import HIDDEN_FOLDER, PatientTable, group, pseudonymise, read_patients
from cytomil.triage.sources import SlideEntry, discover
from cytomil.triage.whole_slide import SlideReading
from cytomil.triage.worklist import SlideResult, Worklist, in_reading_order
from cytomil.triage.write import AuditLog
from cytomil.workers import WorkerFailure, open_workers


def work_on(found: Sequence[SlideEntry], process: ReadingProcess) -> tuple[Work, list[int]]:
    """The work of assessing these slides, and the number of its units per slide.

    If all slides are bags or folders of cells, the units are cells. The number of cells of a whole slide is not known
    before it is read. If there are whole slides, the units are therefore whole slides. The other slides then count
    nothing, because they take little time.
    """
    cells = [process.n_cells(one) for one in found]
    without_gpu = not torch.cuda.is_available()
    counted = [n for n in cells if n is not None]
    if len(counted) == len(cells):
        # The first slide waits for the engine to start, which takes longer than its cells.
        return Work(sum(counted), "cells", warm_up=1, without_gpu=without_gpu), counted
    units = [int(n is None) for n in cells]
    return Work(sum(units), "whole slides", without_gpu=without_gpu), units


CACHE_FOLDER = "cache"

OnSlide = Callable[[Worklist], None]
_NOT_IN_WORKLIST = {"ray_address", "pseudonymise", "watch", "watch_s", "summaries"}
"""Settings that do not affect a worklist, and the path of the key file, which stays private."""


def rank(
    slide_dir: Path,
    settings: RankConfig,
    listener: Listener,
    on_slide: OnSlide | None = None,
    only: Collection[str] | None = None,
) -> Worklist:
    """Assess every slide in ``slide_dir``. A slide that cannot be assessed is in the worklist, with the reason.

    Finished slides are kept under ``settings.out``, so that a second run, or one after an interruption, does not read
    them again. The heat map, GeoJSON file and QC picture of each whole slide are written there too, and its cells if
    requested. ``on_slide`` is called after each slide but the last, with the worklist so far. Over Ray it is not
    called. With ``only``, slides of other names are ignored. Raises `NotFoundError` if the folder holds no slides,
    `SettingsError` if settings contradict each other, and what `RankSession` raises.
    """
    require_names_shown_or_hidden(settings)
    with ReadingProcess() as process:  # first, because it starts while the model is loaded
        found, ignored = discover(slide_dir, settings.out)
        if only is not None:
            found = [one for one in found if one.real_name in only]
        if settings.pseudonymise is not None:
            found = pseudonymise(found, slide_dir, settings.pseudonymise, settings.out)
        session = RankSession(slide_dir, settings, listener, process)
        if ignored:
            listener.note(f"not slides, left alone: {len(ignored) if settings.pseudonymise else ', '.join(ignored)}")
        session.note_unknown_slides(found)
        return session.worklist(session.assess(found, on_slide=on_slide))


def require_names_shown_or_hidden(settings: RankConfig) -> None:
    """Raise `SettingsError` if the settings would show patients and hide the names of slides."""
    if settings.patients is not None and settings.pseudonymise is not None:
        raise SettingsError("--patients shows patients, and --pseudonymise hides slides. Leave out one of them.")


class RankSession:
    """A triage model and its engine, loaded once to assess slides of ``slide_dir`` in one or several passes.

    Raises `SignatureError`, `TriageModelError` or `EngineError` if the model cannot be used, and `TableError` for a
    faulty ``mpp_csv`` or ``patients``.
    """

    def __init__(self, slide_dir: Path, settings: RankConfig, listener: Listener, process: ReadingProcess) -> None:
        self._slide_dir, self._settings, self._listener, self._process = slide_dir, settings, listener, process
        self._patients = read_patients(settings.patients) if settings.patients else PatientTable({})
        if settings.require_signature is not None:
            require_signature(settings.model, settings.require_signature)
        self._model = load_triage_model(settings.model)
        _require_learnt_from_slide_labels(self._model, settings.model)
        mark_own(settings.out)
        self._reading = _reading(self._model, settings, listener)
        self._engine = _engine(self._model, settings, listener)
        self._model_sha256 = sha256_of_file(self._model.path / CARD_NAME)
        self._audit = AuditLog(settings.out)

    def note_unknown_slides(self, found: Sequence[SlideEntry]) -> None:
        """Tell the listener which slides of ``mpp_csv`` and ``patients`` are not among ``found``."""
        if unlisted := self._patients.unknown([one.name for one in found]):
            self._listener.note(f"{self._settings.patients} names slides that do not exist: {', '.join(unlisted)}")
        names = {name for one in found for name in (one.path.name, one.path.stem)}
        if unknown := sorted(set(self._reading.resolutions.by_slide) - names):
            which = len(unknown) if self._settings.pseudonymise else ", ".join(unknown)
            self._listener.note(f"{self._settings.mpp_csv} names slides that do not exist: {which}")

    def assess(
        self,
        found: Sequence[SlideEntry],
        kept: Sequence[SlideResult] = (),
        n_waiting: int = 0,
        on_slide: OnSlide | None = None,
    ) -> list[SlideResult]:
        """The results of ``found``, in the same order. They are appended to the audit log, and ``kept`` are not.

        ``on_slide`` is called after each slide but the last, with the worklist of the results so far and ``kept``.
        ``n_waiting`` more slides are counted as unread in it.
        """
        settings, audit = self._settings, self._audit
        results: list[SlideResult] = []
        work, units = work_on(found, self._process)

        def take(result: SlideResult, is_new: bool) -> None:
            # Slides that were finished before, or that failed, do not count towards the pace of the others.
            (count.step if is_new and units[len(results)] else count.skip)(units[len(results)])
            results.append(result)
            audit.add(self._model_sha256, result)
            if on_slide is not None and len(results) < len(found):
                on_slide(self.worklist([*kept, *results], len(found) - len(results) + n_waiting))

        loaded = (self._model, self._engine, self._process)
        job = Ranking(settings, self._reading, self._model.card, self._engine.name, self._engine.key, loaded, take)
        # Over Ray, slides are counted when their results return, and ``take`` is not called.
        with nullcontext(Uncounted()) if settings.ray_address else self._listener.whole(work) as count:
            workers = open_workers(settings.ray_address)
            begin = partial(audit.begin, self._model_sha256, len(found) + len(kept))
            answers = workers.map(job, found, self._listener, "reading slides", "slides", begin)
        results[:] = [
            not_assessed(one, WorkersError(answer.reason)) if isinstance(answer, WorkerFailure) else answer
            for one, answer in zip(found, answers, strict=True)
        ]
        if settings.ray_address:
            for result in results:
                audit.add(self._model_sha256, result)
        return results

    def worklist(self, results: Sequence[SlideResult], n_unread: int = 0) -> Worklist:
        """The worklist of ``results``, of a folder in which ``n_unread`` more slides are not read yet."""
        made = _worklist(self._slide_dir, self._settings, self._model, self._engine.key, results, n_unread)
        return replace(made, patients=group(made.slides, self._patients))


def _require_learnt_from_slide_labels(model: TriageModel, path: Path) -> None:
    if model.encoder.card.uses_instance_labels:
        raise TriageModelError(
            f"{path} was shown instance labels when its encoder was trained ({model.encoder.card.method}): a "
            "ceiling to compare with, not a model to read slides by. Train with a method that learns from slide labels."
        )


def _engine(model: TriageModel, settings: RankConfig, listener: Listener) -> Engine:
    engine = open_engine(model.encoder, model.layer.embedded, settings.engine, settings.device, listener.note)
    if model.card.engine not in (None, engine.key):
        listener.note(
            f"cells are embedded with {engine.key}; the model was fitted to embeddings of {model.card.engine}"
        )
    return engine


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
        settings=settings.model_dump(mode="json", exclude_none=True, exclude=_NOT_IN_WORKLIST),
        versions=versions(),
        score_bin_edges=card.score_bin_edges,
        reference_shares=card.reference_shares,
        threshold_range=card.thresholds.decision_range,
        low_threshold_range=card.thresholds.low_range,
        weaknesses=weaknesses(card.trained_on.bags, card.held_out),
        held_out=auroc_text(card.held_out),
        synthetic=card.synthetic,
        collapsed=card.collapsed,
        score_meaning=card.score_meaning,
    )


def _reading(model: TriageModel, settings: RankConfig, listener: Listener) -> SlideReading:
    given = read_resolutions(settings.mpp_csv) if settings.mpp_csv else {}
    cutting = model.cutting
    if cutting is None and settings.crop_um is not None:
        transform = model.encoder.transform
        # The resolution that the layer uses, plus the margin that the encoder's centre crop removes.
        crop_px = math.ceil(max_image_px(model.layer, transform.image_size) / transform.center_crop)
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
    """Facts about the model for a reader: its training data, its date, and its figures on held-out slides."""
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
