"""Runs cells through an encoder into a feature cache, one block in memory at a time, wherever the cells come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from cytomil.encoders.bundle import EncoderBundle
from cytomil.encoders.engines import Engine
from cytomil.encoders.stages import layer_groups
from cytomil.errors import FeatureFileError
from cytomil.features.cache import EmbeddedBlock, FeatureKey, bytes_needed, write_features
from cytomil.features.feeding import CellBlock, Preparation
from cytomil.features.layers import n_described, preparation_sha256
from cytomil.features.orientations import embed_in_orientations
from cytomil.layer import Layer
from cytomil.progress import Problem


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
