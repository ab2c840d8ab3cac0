"""Embeds cells from any source with an encoder and writes a feature cache, with one block in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from cytomil.encoders.bundle import EncoderBundle
from cytomil.encoders.engines import Engine
from cytomil.encoders.stages import layer_groups
from cytomil.errors import FeatureFileError
from cytomil.features.cache import EmbeddedBlock, FeatureKey, bytes_needed, write_features
from cytomil.features.cells import CellBlock, Preparation
from cytomil.files import sha256_of_json
from cytomil.layer import Layer
from cytomil.morphology.measure import DESCRIPTION, N_DESCRIPTORS, SIDE
from cytomil.progress import Problem


def stored_layer(text: str) -> Layer:
    """The layer of a cache or a triage model. Raises `FeatureFileError` if this version does not support it."""
    try:
        return Layer.parse(text)
    except ValueError:
        raise FeatureFileError(
            f"this version of cytomil does not support layer '{text}'. Run `cytomil embed` and `cytomil fit-mil` again."
        ) from None


def n_described(layer: Layer) -> int:
    """Number of trailing feature columns that hold the cell's morphology instead of the encoder's output."""
    return N_DESCRIPTORS if layer.described else 0


def preparation_sha256(layer: Layer, transform_sha256: str) -> str:
    """SHA-256 over the preparation of a cell image: the encoder's transform and, if used, the morphology."""
    return sha256_of_json([transform_sha256, DESCRIPTION]) if layer.described else transform_sha256


def seen_px(layer: Layer, image_size: int) -> int:
    """Side in pixels of the largest image made of a cell. The encoder's is ``image_size``."""
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
    if n == 1:
        return embed(pixels)
    total = np.zeros((), np.float32)
    for i in range(n):
        mirrored = pixels[:, :, ::-1] if i >= len(_QUARTERS) else pixels
        turned = np.rot90(mirrored, _QUARTERS[i % len(_QUARTERS)], axes=(1, 2))
        total = total + embed(np.ascontiguousarray(turned))
    return total / np.float32(n)


class Embedder:
    """Embeds slides one after another with one engine. ``layer`` is the engine's layer, with or without morphology."""

    def __init__(self, bundle: EncoderBundle, engine: Engine, layer: Layer, dtype: str, orientations: int = 1) -> None:
        self.bundle, self.layer = bundle, layer
        self._engine, self._dtype, self._orientations = engine, dtype, orientations
        description = (n_described(layer),) if layer.described else ()
        self._groups = layer_groups(bundle.encoder, layer.embedded) + description

    @property
    def preparation(self) -> Preparation:
        """The preparation of cells that `embed` needs."""
        return Preparation(self.bundle.transform, n_described(self.layer) > 0)

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

        key, made_of = self.key(source_sha256), self.bundle.made_of
        dim = sum(self._groups)
        write_features(path, bag_id, key, dim, embedded(), mpp, unreadable, encoder=made_of, groups=self._groups)
        return problems

    def embedded(self, bag_id: str, blocks: Iterable[CellBlock], problems: list[Problem]) -> Iterator[EmbeddedBlock]:
        """Yield the embeddings of blocks of cells. Unreadable cells are added to ``problems``.

        Raises `FeatureFileError` if embeddings are not finite.
        """
        for block in blocks:
            problems.extend(block.problems)
            with np.errstate(over="ignore"):  # overflow gives infinity, which is checked below
                embeddings = embed_in_orientations(self._engine.embed, block.pixels, self._orientations)
                values = np.concatenate([embeddings, block.morphology], axis=1).astype(self._dtype)
            if not np.isfinite(values).all():
                raise FeatureFileError(
                    f"{bag_id}: embeddings are not finite in {self._dtype}. Use --dtype float32 or another encoder."
                )
            yield EmbeddedBlock(block.instance_ids, block.coords, values)


def as_lines(problems: Iterable[Problem]) -> list[str]:
    """Unreadable cells in the format of a cache."""
    return [f"{problem.where}: {problem.reason}" for problem in problems]
