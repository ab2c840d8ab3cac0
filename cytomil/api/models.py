"""Encoders and triage models from Python, and keyword arguments as their settings."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from cytomil.api.cells import Images, blocks_of
from cytomil.config import Config, own_config
from cytomil.encoders.bundle import EncoderBundle, load_bundle
from cytomil.encoders.engines import open_engine
from cytomil.encoders.stages import layer_groups, layer_of
from cytomil.errors import ImageUnreadableError, NoCellsError
from cytomil.features.cache import EmbeddedBlock
from cytomil.features.config import EmbedConfig
from cytomil.features.embed import Embedder, n_morphology
from cytomil.layer import Layer
from cytomil.mil.triage_model import TriageModel, load_triage_model
from cytomil.progress import Count, Listener, Problem, Silent, Work
from cytomil.triage.config import RankConfig

Configured = TypeVar("Configured", bound=Config)
T = TypeVar("T")

_SECONDS_BETWEEN = 5.0


def configured(function: str, model: type[Configured], settings: Mapping[str, Any], chosen_by: str = "") -> Configured:
    """The configuration that the keyword arguments of ``function`` describe.

    Args:
        function: the name shown in the error.
        model: the configuration.
        settings: its fields.
        chosen_by: the field that names a method or an aggregator. Keywords that are no fields of ``model`` are then its
            own settings, which the function that trains or fits checks.

    Raises:
        SettingsError: one line, if a setting is unknown or a value is not allowed.
    """
    given = dict(settings)
    if chosen_by and "options" in model.model_fields:
        own = {key: given.pop(key) for key in list(given) if key not in model.model_fields}
        if own:
            name = str(given.get(chosen_by, model.model_fields[chosen_by].default))
            options = dict(given.get("options") or {})
            given["options"] = options | {name: dict(options.get(name) or {}) | own}
    return cast(Configured, own_config("function", function, model, {function: given}))


def listener_for(progress: bool) -> Listener:
    """The receiver of progress: none, or standard error."""
    return Printed() if progress else Silent()


class Printed:
    """Prints plain lines to standard error, at most one per task in five seconds. A notebook shows them too."""

    def track(self, items: Iterable[T], description: str, total: int | None = None, unit: str = "") -> Iterator[T]:
        """Yield ``items``, and count them now and then."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        report = _counter(f"{description}: ", total, unit)
        for item in items:
            yield item
            report(1)

    @contextmanager
    def whole(self, work: Work) -> Iterator[Count]:
        """Count the whole of the work."""
        yield _Counted(_counter("in all: ", work.total, work.unit))

    def note(self, message: str) -> None:
        """Print one line."""
        print(message, file=sys.stderr, flush=True)


class _Counted:
    def __init__(self, report: Callable[[int], None]) -> None:
        self._report = report

    def step(self, units: int) -> None:
        self._report(units)

    def skip(self, units: int) -> None:
        self._report(units)


def _counter(prefix: str, total: int | None, unit: str) -> Callable[[int], None]:
    done, due = 0, time.monotonic() + _SECONDS_BETWEEN

    def report(units: int) -> None:
        nonlocal done, due
        done += units
        if time.monotonic() >= due or done == total:
            of = "" if total is None else f" of {total:,}"
            print(f"{prefix}{done:,}{of} {unit}".rstrip(), file=sys.stderr, flush=True)
            due = time.monotonic() + _SECONDS_BETWEEN

    return report


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
        return sum(layer_groups(self._bundle.encoder, self._layer.embedded)) + n_morphology(self._layer)

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


@dataclass(frozen=True)
class Scored:
    """The result of a model for one bag of N cells.

    Attributes:
        probability: that the bag is positive, 0 to 1.
        scores: float (N,), one per cell, above 0. A higher score is more suspicious; `Model.score_meaning` is the unit.
        names: one per cell: the path inside the folder, the instance id in the bag, or "image 3".
        is_unlike: whether the cells as a whole are unlike those of the training bags. The probability is then not
            reliable.
        problems: cells that could not be read, each with the reason. They have no score.
    """

    probability: float
    scores: np.ndarray
    names: tuple[str, ...]
    is_unlike: bool
    problems: tuple[Problem, ...] = ()

    def top(self, n: int) -> list[tuple[str, float]]:
        """The ``n`` most suspicious cells, as name and score, the highest score first."""
        order = np.argsort(-self.scores, kind="stable")[:n]
        return [(self.names[i], float(self.scores[i])) for i in order]


class Model:
    """A fitted triage model. It can be passed where the path of a model is expected.

    Attributes:
        path: the folder of the model.
        card: triage.json as a dict: aggregator, settings, thresholds, how well it did on held-out training bags.
        threshold: the probability from which a bag is called positive.
        score_meaning: what a cell's score is, in words that follow a number.
    """

    def __init__(self, model: TriageModel, settings: RankConfig) -> None:
        self.path, self.card = model.path, model.card.to_json()
        self.threshold = model.card.thresholds.decision
        self.score_meaning = model.card.score_meaning
        self._model = model
        self._cells = CellReader(model.encoder, model.layer, model.orientations, settings)

    def __fspath__(self) -> str:
        return str(self.path)

    def embed(self, images: Images) -> np.ndarray:
        """Embed cells with the model's own encoder and layer.

        Args:
            images: as for `score`.

        Returns:
            float32 (N, D), without the cells that cannot be read.
        """
        parts = [block.values for block in self._cells.read(images, [])]
        return np.concatenate(parts) if parts else np.zeros((0, self._cells.dim), np.float32)

    def score(self, images: Images) -> Scored:
        """Assess the cells of one bag or slide.

        A folder of images or a bag file gets the probability and the scores that `cytomil.rank` gives it. Use `rank`
        for whole slides.

        Args:
            images: the path of a folder of cell images or of a bag file, a bag, a list of images or paths, or an array
                (N, H, W, 3), uint8.

        Raises:
            NotFoundError: there is no such file or folder.
            NoCellsError: there are no cells, or none can be read.
            ValueError: an array has another shape or type.
        """
        problems: list[Problem] = []
        names: list[str] = []
        reading, novelty = self._model.ensemble.begin(), self._model.novelty.begin()
        for block in self._cells.read(images, problems):
            names += block.instance_ids
            reading.add(block.values)
            novelty.add(block.values)
        if not names:
            first = f" The first: {problems[0].where}: {problems[0].reason}" if problems else ""
            raise NoCellsError(f"there are no cells to score.{first}")
        assessment = reading.result()
        return Scored(
            assessment.probability, assessment.scores, tuple(names), novelty.result().is_unlike, tuple(problems)
        )

    def score_embeddings(self, embeddings: np.ndarray, names: Iterable[str] = ()) -> Scored:
        """Assess a bag whose cells were embedded before, by `Model.embed` or in a feature cache.

        Args:
            embeddings: (N, D), N ≥ 1, with the model's encoder and layer.
            names: one per cell; without them the cells are numbered.

        Raises:
            ValueError: the shape is another one.
        """
        values = np.ascontiguousarray(embeddings, np.float32)
        if values.ndim != 2 or len(values) == 0 or values.shape[1] != self._cells.dim:
            raise ValueError(f"the embeddings need the shape (N ≥ 1, {self._cells.dim}), got {values.shape}")
        given = tuple(names) or tuple(f"cell {number}" for number in range(len(values)))
        if len(given) != len(values):
            raise ValueError(f"there are {len(given)} names for {len(values)} cells")
        assessment = self._model.ensemble.assess(values)
        is_unlike = self._model.novelty.measure([values]).is_unlike
        return Scored(assessment.probability, assessment.scores, given, is_unlike)

    def __repr__(self) -> str:
        return f"Model({str(self.path)!r}: {self.card['aggregator']['name']}, layer {self._model.layer})"


def load_model(path: str | Path, **settings: Any) -> Model:
    """Load a triage model to score bags with.

    Args:
        path: the folder of a model, such as `cytomil.fit` writes. It contains its encoder.
        **settings: engine, device, batch_size, workers, as for `cytomil.rank`.

    Raises:
        NotFoundError, TriageModelError: the model is missing or damaged.
        SettingsError: a setting is unknown or not allowed.

    >>> import cytomil
    >>> model = cytomil.load_model("models/triage")
    >>> scored = model.score(cytomil.open_bags("data/bags")[-1])
    >>> 0 <= scored.probability <= 1, scored.scores.shape, len(scored.top(3))
    (True, (10,), 3)
    """
    config = configured("load_model", RankConfig, settings)
    return Model(load_triage_model(Path(path)), config)
