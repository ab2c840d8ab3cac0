"""An encoder from Python: images in, embeddings out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cytomil.api.cells import Images, blocks_of
from cytomil.api.settings import configured
from cytomil.encoders.bundle import EncoderBundle, load_bundle
from cytomil.encoders.engines import open_engine
from cytomil.encoders.stages import layer_groups, layer_of
from cytomil.errors import ImageUnreadableError
from cytomil.features.cache import EmbeddedBlock
from cytomil.features.config import EmbedConfig
from cytomil.features.embedder import Embedder, n_described
from cytomil.layer import Layer
from cytomil.progress import Problem, Silent


class Encoder:
    """A trained encoder. It can be passed where the path of an encoder is expected.

    Attributes:
        path: the folder of the encoder bundle.
        card: encoder.json as a dict: architecture, method, settings, training history.
        layer: what an embedding consists of.
    """

    def __init__(self, bundle: EncoderBundle, settings: EmbedConfig) -> None:
        self.path, self.card = bundle.path, bundle.card.to_json()
        self.layer = layer_of(settings.layer, bundle.encoder)
        self._cells = CellReader(bundle, self.layer, settings.orientations, settings)

    def __fspath__(self) -> str:
        return str(self.path)

    def embed(self, images: Images) -> np.ndarray:
        """Embed images of single cells.

        Args:
            images: an array (N, H, W, 3), uint8; or a list of images, as arrays (H, W, 3) or (H, W), as PIL images or
                as paths, which may differ in size; or the path of a folder, whose images are taken in the order of their
                paths; or a bag.

        Returns:
            float32 (N, D), one row per image, in their order. The embeddings in a feature cache are the same, rounded to
            its number format.

        Raises:
            NotFoundError: there is no such file or folder.
            NoCellsError: the folder holds no images.
            ImageUnreadableError: an image cannot be decoded.
            ValueError: an array has another shape or type.
        """
        problems: list[Problem] = []
        parts = []
        for block in self._cells.read(images, problems):
            _require_none(problems)
            parts.append(block.values)
        _require_none(problems)
        return np.concatenate(parts) if parts else np.zeros((0, self._cells.dim), np.float32)

    def __repr__(self) -> str:
        architecture = self.card["architecture"]["name"]
        return f"Encoder({str(self.path)!r}: {architecture}, method {self.card['method']}, layer {self.layer})"


class CellReader:
    """Runs cells through an encoder. The engine starts when it is first needed, which may take a moment."""

    def __init__(self, bundle: EncoderBundle, layer: Layer, orientations: int, settings: Any) -> None:
        self._bundle, self._layer, self._orientations, self._settings = bundle, layer, orientations, settings
        self._embedder: Embedder | None = None

    @property
    def embedder(self) -> Embedder:
        """The encoder with its engine, which starts at the first access."""
        if self._embedder is None:
            settings = self._settings
            engine = open_engine(self._bundle, self._layer.embedded, settings.engine, settings.device, Silent().note)
            self._embedder = Embedder(self._bundle, engine, self._layer, "float32", self._orientations)
        return self._embedder

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return sum(layer_groups(self._bundle.encoder, self._layer.embedded)) + n_described(self._layer)

    def read(self, images: Images, problems: list[Problem]) -> Iterator[EmbeddedBlock]:
        """The embeddings block by block; cells that cannot be read are added to ``problems``."""
        settings, embedder = self._settings, self.embedder
        blocks: Iterable[Any] = blocks_of(images, embedder.preparation, settings.batch_size, settings.workers)
        for block in embedder.embedded("the images", blocks, problems):
            if block.instance_ids:
                yield block


def _require_none(problems: list[Problem]) -> None:
    if problems:
        raise ImageUnreadableError(f"{problems[0].where}: {problems[0].reason}")


def load_encoder(path: str | Path, **settings: Any) -> Encoder:
    """Load an encoder to embed images with.

    Args:
        path: the folder of an encoder bundle, such as `cytomil.pretrain` writes.
        **settings: layer, orientations, engine, device, batch_size, workers, as for `cytomil.embed`.

    Raises:
        NotFoundError, EncoderBundleError: the encoder is missing or damaged.
        SettingsError: a setting is unknown or not allowed.

    >>> import cytomil
    >>> encoder = cytomil.load_encoder("models/encoder", layer="h")
    >>> bag = cytomil.open_bags("data/bags")[0]
    >>> encoder.embed(bag.images).shape
    (10, 96)
    """
    config = configured("load_encoder", EmbedConfig, settings)
    return Encoder(load_bundle(Path(path)), config)
