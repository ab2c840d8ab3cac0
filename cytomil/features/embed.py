"""embed: bags through an encoder into feature caches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path

from cytomil.bags.bag_file import Bag, open_bag
from cytomil.bags.manifest import BagRow, read_manifest
from cytomil.encoders.bundle import load_bundle
from cytomil.encoders.engines import open_engine
from cytomil.encoders.transform import CellTransform
from cytomil.errors import BagFileError
from cytomil.features.cache import is_valid, open_features
from cytomil.features.embedder import Embedder
from cytomil.features.feeding import CellBlock, EncodedCells, feed, spans
from cytomil.features.index import FeatureIndex, IndexRow, write_index
from cytomil.progress import Listener, Problem
from cytomil.settings import EmbedSettings
from cytomil.threads import ahead


@dataclass(frozen=True)
class Embedded:
    """What embed wrote: how many bags anew, how many were done already, and what could not be embedded."""

    folder: Path
    n_new: int
    n_kept: int
    n_instances: int
    engine: str
    problems: tuple[Problem, ...]


def bag_blocks(bag: Bag, transform: CellTransform, batch_size: int, workers: int = 0) -> Iterator[CellBlock]:
    """Decode a bag's cells in threads, ``batch_size`` at a time; see `cytomil.features.feeding.feed`."""
    pieces = (partial(_read_piece, bag, *span) for span in spans(len(bag), batch_size))
    return feed(pieces, transform, batch_size, workers)


@dataclass(frozen=True)
class _Begun:
    """A bag whose first block is decoded."""

    bag: Bag
    blocks: Iterator[CellBlock]


def _started(blocks: Iterator[CellBlock]) -> Iterator[CellBlock]:
    """The same blocks, the first of them made now."""
    return chain(list(islice(blocks, 1)), blocks)


def _read_piece(bag: Bag, start: int, stop: int) -> EncodedCells:
    return EncodedCells(list(bag.instance_ids[start:stop]), bag.coords[start:stop], bag.images(start, stop))


def embed(settings: EmbedSettings, listener: Listener) -> Embedded:
    """Embed the bags of the chosen split; finished, valid caches of the same key are kept.

    A bag that cannot be read is listed and does not end the batch. Raises `NotFoundError`, `BagFileError` or
    `EncoderBundleError` where nothing can be done at all.
    """
    manifest = read_manifest(settings.bags)
    bundle = load_bundle(settings.encoder)
    rows = manifest.select(settings.split)
    if not rows:
        raise BagFileError(f"{settings.bags} has no bags in split '{settings.split}'. Choose another --split.")
    engine = open_engine(bundle, settings.layer.value, settings.engine.value, settings.device, listener.note)
    embedder = Embedder(bundle, engine, settings.dtype)
    problems: list[Problem] = []
    done: list[IndexRow] = []
    n_kept = 0

    def begin(row: BagRow) -> _Begun | BagFileError | None:
        if is_valid(settings.out / f"{row.bag_id}.h5", embedder.key(row.sha256)):
            return None
        try:
            bag = _open_listed(manifest.file_of(row), row)
            return _Begun(bag, _started(bag_blocks(bag, bundle.transform, settings.batch_size, settings.workers)))
        except BagFileError as error:
            return error

    # The next bag is begun while one is embedded, or the engine would wait for the first block of each.
    with closing(ahead((partial(begin, row) for row in rows), workers=1, most=2)) as begun_bags:
        for row in listener.track(rows, "embedding", unit="bags"):
            path = settings.out / f"{row.bag_id}.h5"
            begun = next(begun_bags)
            kept = begun is None
            if begun is None:
                unreadable = open_features(path).unreadable
                problems += [Problem(f"{row.bag_id}/{name}", "could not be read when embedded") for name in unreadable]
            elif isinstance(begun, BagFileError):
                problems.append(Problem(row.bag_id, str(begun)))
                continue
            else:
                try:
                    faults = embedder.embed(path, row.bag_id, row.sha256, begun.blocks, begun.bag.info.mpp)
                except BagFileError as error:
                    problems.append(Problem(row.bag_id, str(error)))
                    continue
                problems += [Problem(f"{row.bag_id}/{fault.where}", fault.reason) for fault in faults]
            indexed = _index_row(row, path)
            if indexed.n_instances == 0:
                problems.append(Problem(row.bag_id, "none of its cells can be read"))
                continue
            done.append(indexed)
            n_kept += kept
    n_done, n_instances = len(done), sum(row.n_instances for row in done)
    chosen = {row.bag_id for row in rows}
    for row in manifest.rows:
        path = settings.out / f"{row.bag_id}.h5"
        # Embedding one split must not make the other one's finished caches disappear from the index.
        if row.bag_id not in chosen and is_valid(path, embedder.key(row.sha256)):
            done += [indexed for indexed in [_index_row(row, path)] if indexed.n_instances]
    if not n_done:
        raise BagFileError(f"none of the {len(rows)} bags in {settings.bags} could be embedded: {problems[0].reason}")
    write_index(FeatureIndex(settings.out, tuple(done)))
    return Embedded(settings.out, n_done - n_kept, n_kept, n_instances, engine.key, tuple(problems))


def _index_row(row: BagRow, path: Path) -> IndexRow:
    return IndexRow(row.bag_id, path.name, row.patient_id, row.split, row.label, len(open_features(path)))


def _open_listed(path: Path, row: BagRow) -> Bag:
    bag = open_bag(path)
    if bag.sha256 != row.sha256:
        raise BagFileError(f"{path} is not the bag that bags.csv lists. Make the bags again with `cytomil make-bags`.")
    return bag
