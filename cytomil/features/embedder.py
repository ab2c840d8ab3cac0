"""Runs cells through an encoder into a feature cache, one block in memory at a time, wherever the cells come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np

from cytomil.encoders.bundle import EncoderBundle
from cytomil.encoders.engines import Engine
from cytomil.encoders.stages import layer_groups
from cytomil.encoders.transform import CellTransform, decode_cells_for
from cytomil.errors import FeatureFileError
from cytomil.features.cache import EmbeddedBlock, FeatureKey, bytes_needed, write_features
from cytomil.files import sha256_of_json
from cytomil.layer import Layer
from cytomil.morphology.measure import DESCRIPTION, N_DESCRIPTORS, SIDE, describe
from cytomil.progress import Problem
from cytomil.threads import ahead, usable_cores


def stored_layer(text: str) -> Layer:
    """The layer that a cache or a triage model names. Raises `FeatureFileError` for one of another version of cytomil."""
    try:
        return Layer.parse(text)
    except ValueError:
        raise FeatureFileError(
            f"layer '{text}' is not one of this version of cytomil. Embed and fit again: `cytomil embed`, `cytomil fit-mil`."
        ) from None


def n_described(layer: Layer) -> int:
    """How many of a feature's last columns are the cell's morphology and not the encoder's."""
    return N_DESCRIPTORS if layer.described else 0


def preparation_sha256(layer: Layer, transform_sha256: str) -> str:
    """Names all that is done to a cell's image: the encoder's transform, and how the cell is described, where it is."""
    return sha256_of_json([transform_sha256, DESCRIPTION]) if layer.described else transform_sha256


def seen_px(layer: Layer, image_size: int) -> int:
    """Pixels a side of the finest picture that is made of a cell, the encoder's being ``image_size``."""
    return max(image_size, SIDE) if layer.described else image_size


Embed = Callable[[np.ndarray], np.ndarray]
"""From decoded cells, uint8 (N, S, S, 3), to embeddings, float32 (N, D)."""

# So ordered that the first two and the first four are groups too: half a turn; quarter turns; with their mirror images.
_QUARTERS = (0, 2, 1, 3)


def embed_in_orientations(embed: Embed, pixels: np.ndarray, n: int) -> np.ndarray:
    """The mean embedding over ``n`` orientations of each cell, uint8 (N, S, S, 3) → float32 (N, D).

    1: as the cell lies; 2: and turned by half; 4: all quarter turns; 8: and their mirror images, after which turning or
    mirroring a cell changes nothing but rounding. Costs ``n`` times as much.
    """
    if n == 1:
        return embed(pixels)
    total = np.zeros((), np.float32)
    for i in range(n):
        mirrored = pixels[:, :, ::-1] if i >= len(_QUARTERS) else pixels
        turned = np.rot90(mirrored, _QUARTERS[i % len(_QUARTERS)], axes=(1, 2))
        total = total + embed(np.ascontiguousarray(turned))
    return total / np.float32(n)


_PIECE = 64  # cells: small enough that several threads share a batch, large enough that reading a piece costs nothing


@dataclass(frozen=True)
class EncodedCells:
    """Some cells as they came: ids, coords (n, 2) and encoded images; ``problems`` are those that could not be read."""

    instance_ids: list[str]
    coords: np.ndarray
    images: list[bytes]
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class Preparation:
    """What is made of a cell's image: pixels for the encoder, and, if ``described``, its morphology."""

    transform: CellTransform
    described: bool = False


@dataclass(frozen=True)
class CellBlock:
    """Some cells of a slide, ready for the encoder.

    ``pixels`` uint8 (n, S, S, 3) of the readable cells, ``instance_ids`` and ``coords`` (n, 2) theirs, ``morphology`` float32
    (n, 109), or (n, 0) where it was not asked for; ``problems`` are the unreadable ones, each named by its
    instance id.
    """

    instance_ids: list[str]
    coords: np.ndarray
    pixels: np.ndarray
    morphology: np.ndarray
    problems: list[Problem]


def piece_sizes(batch_size: int) -> Iterator[int]:
    """Sizes of the pieces to hand to `feed`, without end: they fill batch after batch exactly."""
    full, rest = divmod(batch_size, _PIECE)
    return cycle([_PIECE] * full + [rest] * (rest > 0))


def spans(n: int, batch_size: int) -> Iterator[tuple[int, int]]:
    """Start and stop of the pieces of ``n`` cells."""
    start = 0
    for size in piece_sizes(batch_size):
        if start >= n:
            return
        yield start, min(start + size, n)
        start += size


def feed(
    pieces: Iterable[Callable[[], EncodedCells]], preparation: Preparation, batch_size: int, workers: int = 0
) -> Iterator[CellBlock]:
    """Yield blocks of ``batch_size`` cells, the unreadable ones counted, the last one smaller.

    ``pieces``: functions that read some cells each, in order, of the sizes that `piece_sizes` tells; they are called in
    ``workers`` threads (0: one per usable core). Blocks depend on neither the number nor the timing of threads. Decoded
    ahead is what fills one batch and keeps the threads busy, so memory does not grow with the number of cells.
    """
    begun = -(-batch_size // _PIECE) + 2 * (workers or usable_cores())
    parts: list[CellBlock] = []
    with closing(ahead((partial(_decoded, piece, preparation) for piece in pieces), workers, begun)) as decoded:
        for part in decoded:
            parts.append(part)
            if sum(len(one.instance_ids) + len(one.problems) for one in parts) >= batch_size:
                yield _joined(parts)
                parts = []
    if parts:
        yield _joined(parts)


def _decoded(piece: Callable[[], EncodedCells], preparation: Preparation) -> CellBlock:
    cells = piece()
    transforms = [preparation.transform]
    if preparation.described:  # in more pixels: the encoder's may be too few to see a nucleus' shape in
        transforms.append(CellTransform(SIDE, preparation.transform.center_crop))
    (pixels, *larger), kept, problems = decode_cells_for(cells.images, cells.instance_ids, transforms)
    ids = [cells.instance_ids[i] for i in kept]
    morphology = describe(larger[0]) if larger else np.empty((len(ids), 0), np.float32)
    return CellBlock(
        ids, cells.coords[np.array(kept, int)].reshape(-1, 2), pixels, morphology, cells.problems + problems
    )


def _joined(parts: list[CellBlock]) -> CellBlock:
    if len(parts) == 1:
        return parts[0]
    return CellBlock(
        [name for part in parts for name in part.instance_ids],
        np.concatenate([part.coords for part in parts]),
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.morphology for part in parts]),
        [problem for part in parts for problem in part.problems],
    )


class Embedder:
    """Embeds slides one after another with one engine; ``layer`` is the engine's, described or not."""

    def __init__(self, bundle: EncoderBundle, engine: Engine, layer: Layer, dtype: str, orientations: int = 1) -> None:
        self.bundle, self.layer = bundle, layer
        self._engine, self._dtype, self._orientations = engine, dtype, orientations
        description = (n_described(layer),) if layer.described else ()
        self._groups = layer_groups(bundle.encoder, layer.embedded) + description

    @property
    def preparation(self) -> Preparation:
        """What `embed` needs of each cell."""
        return Preparation(self.bundle.transform, n_described(self.layer) > 0)

    def bytes_needed(self, n: int) -> int:
        """Size on disk of the features of ``n`` cells."""
        return bytes_needed(n, sum(self._groups), self._dtype)

    def key(self, source_sha256: str) -> FeatureKey:
        """The key under which the features of a source with this fingerprint are kept."""
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
        """Write the cache ``path``; returns the unreadable cells. Raises `FeatureFileError` for non-finite embeddings."""
        problems: list[Problem] = []
        unreadable: list[str] = []

        def embedded() -> Iterator[EmbeddedBlock]:
            yield from self.embedded(bag_id, blocks, problems)
            unreadable.extend(as_lines(problems))

        key, made_of = self.key(source_sha256), self.bundle.made_of
        dim = sum(self._groups)
        write_features(path, bag_id, key, dim, embedded(), mpp, unreadable, encoder=made_of, groups=self._groups)
        return problems

    def embedded(self, bag_id: str, blocks: Iterable[CellBlock], problems: list[Problem]) -> Iterator[EmbeddedBlock]:
        """The embeddings of blocks of cells, one after another; unreadable cells are added to ``problems``.

        Raises `FeatureFileError` for non-finite embeddings.
        """
        for block in blocks:
            problems.extend(block.problems)
            with np.errstate(over="ignore"):  # what does not fit the format is refused below
                embeddings = embed_in_orientations(self._engine.embed, block.pixels, self._orientations)
                values = np.concatenate([embeddings, block.morphology], axis=1).astype(self._dtype)
            if not np.isfinite(values).all():
                raise FeatureFileError(
                    f"{bag_id}: embeddings are not finite in {self._dtype}. Use --dtype float32 or another encoder."
                )
            yield EmbeddedBlock(block.instance_ids, block.coords, values)


def as_lines(problems: Iterable[Problem]) -> list[str]:
    """Unreadable cells as a cache lists them."""
    return [f"{problem.where}: {problem.reason}" for problem in problems]
