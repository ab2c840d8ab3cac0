"""A triage model from Python: cells in, the bag's probability and one score per cell out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cytomil.api.cells import Images
from cytomil.api.encoder import CellReader
from cytomil.api.settings import configured
from cytomil.errors import NoCellsError
from cytomil.mil.triage_model import TriageModel, load_triage_model
from cytomil.progress import Problem
from cytomil.triage.config import RankConfig


@dataclass(frozen=True)
class Scored:
    """What a model says of one bag of N cells.

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
        assessed, judged = self._model.ensemble.begin(), self._model.novelty.begin()
        for block in self._cells.read(images, problems):
            names += block.instance_ids
            assessed.add(block.values)
            judged.add(block.values)
        if not names:
            first = f" The first: {problems[0].where}: {problems[0].reason}" if problems else ""
            raise NoCellsError(f"there are no cells to score.{first}")
        assessment = assessed.result()
        return Scored(
            assessment.probability, assessment.scores, tuple(names), judged.result().is_unlike, tuple(problems)
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
        is_unlike = self._model.novelty.judge([values]).is_unlike
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
