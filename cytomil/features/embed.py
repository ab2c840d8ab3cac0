"""embed: embeds the cells of bags with an encoder and writes feature caches, one block in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cytomil.bags.bag_file import Bag
from cytomil.bags.manifest import BagRow, Manifest, open_listed, open_unaltered, read_manifest
from cytomil.encoders.bundle import EncoderBundle, load_bundle
from cytomil.encoders.engines import Engine, open_engine, open_same_engine
from cytomil.encoders.stages import layer_groups, layer_of
from cytomil.errors import BagFileError, EncoderBundleError, FeatureFileError
from cytomil.features.cache import EmbeddedBlock, FeatureKey, bytes_needed, is_valid, open_features, write_features
from cytomil.features.cells import CellBlock, Preparation, bag_blocks
from cytomil.features.config import EmbedConfig
from cytomil.features.index import FeatureIndex, IndexRow, write_embed_record, write_index
from cytomil.files import sha256_of_json
from cytomil.layer import Layer
from cytomil.morphology.measure import DESCRIPTION, N_DESCRIPTORS, SIDE
from cytomil.progress import Count, Listener, Problem, Work, require_disk_space
from cytomil.threads import prefetch
from cytomil.workers import JobContext, WorkerFailure, open_workers


def stored_layer(text: str) -> Layer:
    """The layer of a cache or a triage model. Raises `FeatureFileError` if this version does not support it."""
    try:
        return Layer.parse(text)
    except ValueError:
        raise FeatureFileError(
            f"this version of cytomil does not support layer '{text}'. Run `cytomil embed` and `cytomil fit-mil` again."
        ) from None


def n_morphology(layer: Layer) -> int:
    """Number of trailing feature columns that hold the cell's morphology instead of the encoder's output."""
    return N_DESCRIPTORS if layer.described else 0


def preparation_sha256(layer: Layer, transform_sha256: str) -> str:
    """SHA-256 over the preparation of a cell image: the encoder's transform and, if used, the morphology."""
    return sha256_of_json([transform_sha256, DESCRIPTION]) if layer.described else transform_sha256


def max_image_px(layer: Layer, image_size: int) -> int:
    """Side in pixels of the largest image made of each cell. The encoder's image has the side ``image_size``."""
    return max(image_size, SIDE) if layer.described else image_size


Embed = Callable[[np.ndarray], np.ndarray]
"""Maps decoded cells, uint8 (N, S, S, 3), to embeddings, float32 (N, D)."""

# Quarter turns in this order, so that the first two (0° and 180°) are a group too.
_QUARTERS = (0, 2, 1, 3)


def embed_in_orientations(embed: Embed, pixels: np.ndarray, n: int) -> np.ndarray:
    """The mean embedding over ``n`` orientations of each cell, uint8 (N, S, S, 3) → float32 (N, D).

    ``n`` = 1: unchanged; 2: also rotated by 180°; 4: all multiples of 90°; 8: also their mirror images. With 8, rotating or
    mirroring a cell changes the result only by rounding. The cost is ``n``-fold.
    """
    return _mean_over_orientations(embed, embed(pixels), pixels, n)


def _mean_over_orientations(embed: Embed, first: np.ndarray, pixels: np.ndarray, n: int) -> np.ndarray:
    """`embed_in_orientations` of cells whose embeddings as they are, ``first``, are known."""
    total = first
    for i in range(1, n):
        mirrored = pixels[:, :, ::-1] if i >= len(_QUARTERS) else pixels
        turned = np.rot90(mirrored, _QUARTERS[i % len(_QUARTERS)], axes=(1, 2))
        total = total + embed(np.ascontiguousarray(turned))
    return total / np.float32(n)


class Embedder:
    """Embeds slides one after another with one engine. ``layer`` is the engine's layer, with or without morphology."""

    def __init__(self, bundle: EncoderBundle, engine: Engine, layer: Layer, dtype: str, orientations: int = 1) -> None:
        self.bundle, self.layer = bundle, layer
        self._engine, self._dtype, self._orientations = engine, dtype, orientations
        description = (n_morphology(layer),) if layer.described else ()
        self._groups = layer_groups(bundle.encoder, layer.embedded) + description

    @property
    def preparation(self) -> Preparation:
        """The preparation of cells that `embed` needs."""
        return Preparation(self.bundle.transform, n_morphology(self.layer) > 0)

    def bytes_needed(self, n: int) -> int:
        """Size of the features of ``n`` cells in bytes."""
        return bytes_needed(n, sum(self._groups), self._dtype)

    def key(self, source_sha256: str) -> FeatureKey:
        """The key of the features of a source with this fingerprint."""
        bundle, engine = self.bundle, self._engine
        return FeatureKey(
            source_sha256,
            bundle.sha256,
            str(self.layer),
            preparation_sha256(self.layer, bundle.transform.sha256),
            engine.key,
            self._dtype,
            str(self._orientations),
        )

    def embed(
        self,
        path: Path,
        bag_id: str,
        source_sha256: str,
        blocks: Iterable[CellBlock],
        mpp: float | None = None,
    ) -> list[Problem]:
        """Write the cache ``path`` and return the unreadable cells.

        Raises `FeatureFileError` if embeddings are not finite.
        """
        problems: list[Problem] = []
        unreadable: list[str] = []

        def embedded() -> Iterator[EmbeddedBlock]:
            yield from self.embedded(bag_id, blocks, problems)
            unreadable.extend(as_lines(problems))

        key, provenance = self.key(source_sha256), self.bundle.provenance
        dim = sum(self._groups)
        write_features(path, bag_id, key, dim, embedded(), mpp, unreadable, encoder=provenance, groups=self._groups)
        return problems

    def embedded(
        self,
        bag_id: str,
        blocks: Iterable[CellBlock],
        problems: list[Problem],
        choose: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> Iterator[EmbeddedBlock]:
        """Yield the embeddings of blocks of cells. Unreadable cells are added to ``problems``.

        With ``choose``, only chosen cells are embedded in all orientations. It is called with the embeddings of each block
        in one orientation, float32 (n, D), and returns bool (n,).

        Raises `FeatureFileError` if embeddings are not finite.
        """
        embed = self._engine.embed
        for block in blocks:
            problems.extend(block.problems)
            with np.errstate(over="ignore"):  # overflow gives infinity, which is checked below
                if choose is None or self._orientations == 1:
                    values = self._joined(embed_in_orientations(embed, block.pixels, self._orientations), block)
                    self._require_finite(bag_id, values)
                else:
                    first = embed(block.pixels)
                    values = self._joined(first, block)
                    self._require_finite(bag_id, values)
                    chosen = choose(values)
                    if chosen.any():
                        mean = _mean_over_orientations(embed, first[chosen], block.pixels[chosen], self._orientations)
                        self._require_finite(bag_id, mean.astype(self._dtype))
                        values[chosen, : mean.shape[1]] = mean
            yield EmbeddedBlock(block.instance_ids, block.coords, values)

    def _joined(self, embeddings: np.ndarray, block: CellBlock) -> np.ndarray:
        return np.concatenate([embeddings, block.morphology], axis=1).astype(self._dtype)

    def _require_finite(self, bag_id: str, values: np.ndarray) -> None:
        if not np.isfinite(values).all():
            raise FeatureFileError(
                f"{bag_id}: embeddings are not finite in {self._dtype}. Use --dtype float32 or another encoder."
            )


def as_lines(problems: Iterable[Problem]) -> list[str]:
    """Unreadable cells in the format of a cache."""
    return [f"{problem.where}: {problem.reason}" for problem in problems]


@dataclass(frozen=True)
class Embedded:
    """The result of embed: the numbers of new and of kept caches, and what could not be embedded."""

    folder: Path
    n_new: int
    n_kept: int
    n_instances: int
    layer: str
    engine: str
    problems: tuple[Problem, ...]


def embed(settings: EmbedConfig, listener: Listener) -> Embedded:
    """Embed the bags of the chosen split. Complete caches with the same key are kept.

    A bag that cannot be read is listed, and the batch continues. Raises `NotFoundError`, `BagFileError` or
    `EncoderBundleError` if no bag can be embedded.
    """
    manifest = read_manifest(settings.bags)
    bundle = load_bundle(settings.encoder)
    rows = manifest.select(settings.split)
    if not rows:
        raise BagFileError(f"{settings.bags} has no bags in split '{settings.split}'. Choose another --split.")
    for caveat in bundle.caveats:
        listener.note(caveat)
    layer = layer_of(settings.layer, bundle.encoder)
    settings = settings.model_copy(update={"layer": str(layer)})
    engine = open_engine(bundle, layer.embedded, settings.engine, settings.device, listener.note)
    embedder = Embedder(bundle, engine, layer, settings.dtype, settings.orientations)
    n_bytes = _bytes_to_write(settings, rows, embedder)
    require_disk_space(n_bytes, "features", settings.out, "Make fewer bags")
    n_cells = sum(row.n_instances for row in rows)
    work = Work(n_cells, "cells", warm_up=1, disk=n_bytes, without_gpu=not torch.cuda.is_available())
    job = _Embedding(settings, manifest, bundle.sha256, engine.name, engine.key, work, embedder)
    answers = open_workers(settings.ray_address).map(job, rows, listener, "embedding", "bags")
    outcomes = [
        _Outcome(problems=(Problem(row.bag_id, answer.reason),)) if isinstance(answer, WorkerFailure) else answer
        for row, answer in zip(rows, answers, strict=True)
    ]
    problems = [problem for outcome in outcomes for problem in outcome.problems]
    done = [outcome.indexed for outcome in outcomes if outcome.indexed]
    n_kept = sum(outcome.kept for outcome in outcomes)
    n_done, n_instances = len(done), sum(row.n_instances for row in done)
    chosen = {row.bag_id for row in rows}
    for row in manifest.rows:
        path = settings.out / f"{row.bag_id}.h5"
        # Embedding one split must not remove the caches of the other one from the index.
        if row.bag_id in chosen or not is_valid(path, embedder.key(row.sha256)):
            continue
        try:
            open_listed(manifest, row)
        except BagFileError as error:
            problems.append(Problem(row.bag_id, str(error)))
        else:
            done += [indexed for indexed in [_index_row(row, path)] if indexed.n_instances]
    if not n_done:
        raise BagFileError(f"none of the {len(rows)} bags in {settings.bags} could be embedded: {problems[0].reason}")
    write_embed_record(settings.out, settings.bags, settings.encoder, bundle.sha256)
    write_index(FeatureIndex(settings.out, tuple(done)))
    return Embedded(settings.out, n_done - n_kept, n_kept, n_instances, str(layer), engine.key, tuple(problems))


def _bytes_to_write(settings: EmbedConfig, rows: Iterable[BagRow], embedder: Embedder) -> int:
    """Bytes that the caches of these bags need in addition to existing caches, which they replace."""
    needed = 0
    for row in rows:
        path = settings.out / f"{row.bag_id}.h5"
        existing = path.stat().st_size if path.is_file() else 0
        needed += max(0, embedder.bytes_needed(row.n_instances) - existing)
    return needed


@dataclass(frozen=True)
class _Outcome:
    """The result for one bag. ``indexed`` is None if the bag is left out."""

    indexed: IndexRow | None = None
    kept: bool = False
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class _Embedding:
    """The job that embeds bags. ``work`` is the work of all bags.

    ``embedder`` is not sent to other processes. Each process makes its own from the same encoder and engine.
    """

    settings: EmbedConfig
    manifest: Manifest
    encoder_sha256: str
    engine: str
    engine_key: str
    work: Work
    embedder: Embedder | None

    @property
    def device(self) -> str:
        return self.settings.device

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"embedder": None}

    def start(self, context: JobContext) -> Callable[[Iterable[BagRow]], Iterator[_Outcome]]:
        settings = self.settings.model_copy(update={"workers": context.threads(self.settings.workers)})
        embedder = self.embedder or self._make_embedder()

        def embed_bags(rows: Iterable[BagRow]) -> Iterator[_Outcome]:
            # With Ray, this listener is silent, and the main process counts the bags.
            with context.listener.whole(self.work) as count:
                yield from _embed_bags(settings, self.manifest, embedder, rows, count)

        return embed_bags

    def _make_embedder(self) -> Embedder:
        settings = self.settings
        bundle = load_bundle(settings.encoder)
        if bundle.sha256 != self.encoder_sha256:
            raise EncoderBundleError(f"{settings.encoder} differs between machines. Use one shared folder.")
        layer = layer_of(settings.layer, bundle.encoder)
        engine = open_same_engine(bundle, layer.embedded, self.engine, self.engine_key, settings.device)
        return Embedder(bundle, engine, layer, settings.dtype, settings.orientations)


@dataclass(frozen=True)
class _StartedBag:
    """A bag whose first block is decoded."""

    bag: Bag
    blocks: Iterator[CellBlock]


def _embed_bags(
    settings: EmbedConfig, manifest: Manifest, embedder: Embedder, rows: Iterable[BagRow], count: Count
) -> Iterator[_Outcome]:
    def start(row: BagRow) -> tuple[BagRow, _StartedBag | BagFileError | None]:
        try:
            bag = open_unaltered(manifest, row)
            if is_valid(settings.out / f"{row.bag_id}.h5", embedder.key(row.sha256)):
                return row, None
            blocks = bag_blocks(bag, embedder.preparation, settings.batch_size, settings.workers)
            return row, _StartedBag(bag, _with_first_block(blocks))
        except BagFileError as error:
            return row, error

    # The next bag is started while one is embedded. Otherwise the engine would wait for the first block of each bag.
    with closing(prefetch((partial(start, row) for row in rows), workers=1, max_pending=2)) as started_bags:
        for row, started in started_bags:
            yield _embed_started(settings, embedder, row, started, count)


def _with_first_block(blocks: Iterator[CellBlock]) -> Iterator[CellBlock]:
    """The same blocks. The first one is computed now."""
    return chain(list(islice(blocks, 1)), blocks)


def _counted(blocks: Iterable[CellBlock], n: int, count: Count) -> Iterator[CellBlock]:
    """The same blocks of ``n`` cells. A block is counted when the next one is requested, because it is then embedded."""
    try:
        for block in blocks:
            yield block
            done = len(block.instance_ids) + len(block.problems)
            count.step(done)
            n -= done
    except BagFileError:
        count.skip(n)
        raise


def _embed_started(
    settings: EmbedConfig, embedder: Embedder, row: BagRow, started: _StartedBag | BagFileError | None, count: Count
) -> _Outcome:
    path = settings.out / f"{row.bag_id}.h5"
    if started is None:
        count.skip(row.n_instances)
        unreadable = open_features(path).unreadable
        listed = (one.partition(": ") for one in unreadable)
        problems = [
            Problem(f"{row.bag_id}/{name}", why or "could not be read when embedded") for name, _, why in listed
        ]
    elif isinstance(started, BagFileError):
        count.skip(row.n_instances)
        return _Outcome(problems=(Problem(row.bag_id, str(started)),))
    else:
        try:
            blocks = _counted(started.blocks, row.n_instances, count)
            faults = embedder.embed(path, row.bag_id, row.sha256, blocks, started.bag.info.mpp)
        except BagFileError as error:
            return _Outcome(problems=(Problem(row.bag_id, str(error)),))
        problems = [Problem(f"{row.bag_id}/{fault.where}", fault.reason) for fault in faults]
    indexed = _index_row(row, path)
    if indexed.n_instances == 0:
        return _Outcome(problems=(*problems, Problem(row.bag_id, "none of its cells can be read")))
    return _Outcome(indexed, started is None, tuple(problems))


def _index_row(row: BagRow, path: Path) -> IndexRow:
    n = len(open_features(path))
    return IndexRow(row.bag_id, path.name, row.patient_id, row.split, row.label, n, row.sha256)
