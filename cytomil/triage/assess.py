"""Assess one slide after another with one triage model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from cytomil.bags.bag_file import Strings
from cytomil.bags.images import MIN_CELLS
from cytomil.encoders.engines import Engine, open_same_engine
from cytomil.errors import CytomilError, NoCellsError, TriageModelError
from cytomil.features.embed import Embedder, as_lines
from cytomil.mil.bags import informative_cells
from cytomil.mil.cross_validate import Assessment, score_shares
from cytomil.mil.novelty import SlideNovelty
from cytomil.mil.triage_model import TriageCard, TriageModel, load_triage_model
from cytomil.progress import Listener, Problem
from cytomil.slides import CellFinding
from cytomil.text import printable
from cytomil.triage.apart import ReadingProcess, SlideApart
from cytomil.triage.config import RankConfig
from cytomil.triage.pictures import GALLERY_PX, gallery_image
from cytomil.triage.result_cache import ResultCache
from cytomil.triage.second_look import SecondLook
from cytomil.triage.sources import SlideEntry
from cytomil.triage.whole_slide import SlideReading
from cytomil.triage.worklist import Call, KeyInstance, SlideResult, TeachingCell
from cytomil.workers import JobContext

_MANY_UNREADABLE = 0.05


@dataclass(frozen=True)
class Ranking:
    """The job of assessing slides.

    ``loaded`` stays in this process. Another process loads the model again, and it must be the same model.

    ``take`` is called with each result, and whether it is new. It stays in this process too.
    """

    settings: RankConfig
    reading: SlideReading
    card: TriageCard
    engine: str
    engine_key: str
    loaded: tuple[TriageModel, Engine, ReadingProcess] | None
    take: Callable[[SlideResult, bool], None] | None

    @property
    def device(self) -> str:
        """The user's device."""
        return self.settings.device

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"loaded": None, "take": None}

    def start(self, context: JobContext) -> Callable[[Iterable[SlideEntry]], Iterator[SlideResult]]:
        """See `cytomil.workers.Job`."""
        model, engine, process = self.loaded or self._load()
        threads = context.threads(self.settings.workers)
        settings = self.settings.model_copy(update={"workers": threads})
        reading = replace(self.reading, workers=threads)
        ranker = Ranker(model, engine, process, settings, reading, context.listener)
        return partial(map, partial(_told, ranker, self.take))

    def _load(self) -> tuple[TriageModel, Engine, ReadingProcess]:
        process = ReadingProcess()
        model = load_triage_model(self.settings.model)
        if model.card != self.card:
            raise TriageModelError(f"{self.settings.model} differs between machines. Use one shared folder.")
        engine = open_same_engine(
            model.encoder, model.layer.embedded, self.engine, self.engine_key, self.settings.device
        )
        return model, engine, process


def _told(ranker: Ranker, take: Callable[[SlideResult, bool], None] | None, found: SlideEntry) -> SlideResult:
    result = ranker.assess(found)
    if take is not None:
        take(result, not (ranker.was_finished or result.reason))
    return result


@dataclass(frozen=True)
class _Cells:
    """The cells of a slide after all were read: the names of the readable ones, (N,), and their assessment.

    ``unreadable`` names the others, each with its reason.
    """

    names: Sequence[str]
    unreadable: Sequence[str]
    assessment: Assessment
    novelty: SlideNovelty


class Ranker:
    """Assesses slides one after another with one model."""

    def __init__(
        self,
        model: TriageModel,
        engine: Engine,
        process: ReadingProcess,
        settings: RankConfig,
        reading: SlideReading,
        listener: Listener,
    ) -> None:
        self._process = process
        self._model, self._settings, self._reading, self._listener = model, settings, reading, listener
        self._embedder = Embedder(model.encoder, engine, model.layer, "float32", model.orientations)
        shaped_by = {
            "model": model.card.to_json(),
            "top": settings.top,
            # Left out if it is 0, so that results of versions without this setting are still used.
            **({"learn": settings.learn} if settings.learn else {}),
            "cells_csv": settings.cells_csv,
            "second_look": settings.second_look,
            # The second look chooses cells within batches.
            **({"batch_size": settings.batch_size} if settings.second_look < 1 else {}),
            "engine": engine.key,
        }
        self._finished = ResultCache(settings.out, reading.cache, shaped_by)
        self.was_finished = False
        """Whether the slide that was assessed last had been finished before."""

    def assess(self, found: SlideEntry) -> SlideResult:
        """Assess one slide. If that fails, the result holds the reason."""
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
            return not_assessed(found, error)

    def _open(self, found: SlideEntry) -> tuple[SlideApart, str]:
        source = self._process.open(found, self._reading)
        return source, source.fingerprint()

    def _assess(self, found: SlideEntry, source: SlideApart) -> SlideResult:
        try:
            cells = self._read(found, source)
        except NoCellsError as error:
            return source.with_qc(not_assessed(found, error), self._settings.out)
        return self._result(found, source, cells)

    def _read(self, found: SlideEntry, source: SlideApart) -> _Cells:
        """Pass the cells through encoder, aggregator and novelty, block by block. Only names and numbers are kept.

        Raises `NoCellsError` if there are too few.
        """
        blocks = source.blocks(self._embedder.preparation, self._settings.batch_size, self._settings.workers)
        tracked = self._listener.track(blocks, found.name, unit="blocks of cells")
        ensemble = self._model.ensemble
        reading, novelty = ensemble.begin(), self._model.novelty.begin()
        names = Strings()
        problems: list[Problem] = []
        choose = None
        if self._settings.second_look < 1:
            choose = SecondLook(lambda values: ensemble.assess(values).scores, self._settings.second_look).choose
        for block in self._embedder.embedded(found.name, tracked, problems, choose):
            if block.instance_ids:
                names.extend(block.instance_ids)
                reading.add(block.values)
                novelty.add(block.values)
        unreadable = as_lines(problems)
        if len(names) < MIN_CELLS:
            raise NoCellsError(_too_few(len(names), unreadable))
        assessment = reading.result()
        if not np.isfinite(assessment.probability):
            raise TriageModelError("the model gives no finite probability for this slide. Fit the model again.")
        return _Cells(names, unreadable, assessment, novelty.result())

    def _result(self, found: SlideEntry, source: SlideApart, cells: _Cells) -> SlideResult:
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
            to_teach=tuple(
                TeachingCell(cells.names[i], float(assessment.scores[i]))
                for i in informative_cells(assessment.scores, self._settings.top, self._settings.learn)
            ),
            score_shares=tuple(score_shares(assessment.scores).tolist()),
        )
        out, cells_csv = self._settings.out, self._settings.cells_csv
        return source.placed(result, cells.names, assessment.scores, out, cells_csv)

    def _call(self, probability: float, is_unlike: bool, is_few: bool) -> Call:
        thresholds = self._model.card.thresholds
        # The model cannot judge a slide that is unlike all training slides, or a slide of a handful of cells.
        if is_unlike or is_few:
            return Call.REVIEW
        if probability >= thresholds.decision:
            return Call.REVIEW_FIRST
        return Call.REVIEW if probability >= thresholds.low else Call.LOW_PRIORITY

    def _cautions(self, source: SlideApart, cells: _Cells) -> Iterator[str]:
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
        yield from source.cautions()

    def _key_instances(self, source: SlideApart, cells: _Cells) -> tuple[KeyInstance, ...]:
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
        # Counted from the lower edge of the bin that holds the score, so that rarity is understated rather than
        # overstated.
        share = sum(share for upper, share in zip(edges[1:], shares, strict=True) if score < upper)
        as_high = f"about 1 in {1 / share:,.0f}" if share > 0 else "none"
        why = f"{as_high} of the cells on normal training slides scores as high"
        return f"{why}; unlike the cells the model has seen" if novelty.is_beyond[cell] else why


def _how_unlike(novelty: SlideNovelty) -> str:
    odds = "fewer than 1 in 1,000" if novelty.p_value < 1e-3 else f"about 1 in {1 / novelty.p_value:,.0f}"
    return f"Of slides like the training ones, {odds} would lie as far from them."


def not_assessed(found: SlideEntry, error: CytomilError) -> SlideResult:
    """The result of a slide that could not be assessed, with the reason."""
    reason = found.hide(str(error).removeprefix(f"{found.path}: "))
    return SlideResult(found.name, found.shown_path, Call.NOT_ASSESSED, reason=printable(reason))


def _too_few(n: int, unreadable: Sequence[str]) -> str:
    first = f" {len(unreadable)} could not be read (first: {unreadable[0]})" if unreadable else ""
    return f"too few cells: {n or 'none'}, at least {MIN_CELLS} are needed.{first}"
