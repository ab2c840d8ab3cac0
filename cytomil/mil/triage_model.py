"""The triage model: a portable folder with everything that `rank` needs, and warnings about weak models."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cytomil import file_manifest
from cytomil.bags.manifest import FittedBag
from cytomil.cards import Card, Count, Flag, Fraction, Number, Text, read_card
from cytomil.encoders import bundle
from cytomil.encoders.bundle import EncoderBundle, keep_engines, load_bundle, save_bundle
from cytomil.errors import (
    EncoderBundleError,
    FeatureFileError,
    NotFoundError,
    SettingsError,
    TriageModelError,
    require_folder,
)
from cytomil.features.config import require_group
from cytomil.features.embed import preparation_sha256, stored_layer
from cytomil.file_manifest import write_file_manifest
from cytomil.files import put_back, replacing_folder, sha256_of_file, write_json_card
from cytomil.layer import Layer
from cytomil.mil.aggregators.registry import find_aggregator
from cytomil.mil.bags import Standardiser
from cytomil.mil.config import InstanceScore
from cytomil.mil.cross_validate import Ensemble, Member
from cytomil.mil.novelty import Novelty
from cytomil.slides.find import Cutting
from cytomil.weights import save_weights

SCHEMA = "cytomil.triage-model/2"
CARD_NAME = "triage.json"
WEIGHTS_NAME = "aggregator.safetensors"
ENCODER_FOLDER = "encoder"
FEW_BAGS = 30
_CHANCE = 0.5
OWN_FILES: tuple[str, ...] = (
    CARD_NAME,
    WEIGHTS_NAME,
    file_manifest.NAME,
    file_manifest.SIGNATURE_NAME,
    *(f"{ENCODER_FOLDER}/{name}" for name in bundle.OWN_FILES),
)


class AggregatorCard(Card):
    """The kind of the aggregators, their number, and the other arguments that build one, such as ``in_dim``."""

    name: Text
    members: Annotated[Count, Field(ge=1)]
    instance_score: InstanceScore

    @property
    def config(self) -> dict[str, Any]:
        """The keyword arguments of the kind."""
        return dict(self.model_extra or {})


class TrainedOn(Card):
    """The training bags. ``cells_drawn`` of their ``cells`` were used. Older models do not record this number."""

    bags: Count
    positive_bags: Count = 0
    cells: Count = 0
    cells_drawn: Count = 0
    sources: tuple[Text, ...] = ()


class HeldOutFigures(Card):
    """The model's metrics on held-out training bags. Older models lack some fields.

    ``auroc_interval`` is 95 %. ``log_loss`` is in nats. ``probabilities`` and ``labels`` are per bag.
    """

    auroc: Fraction
    auroc_interval: tuple[Fraction, Fraction]
    n_positive_patients: Count = 0
    n_negative_patients: Count = 0
    f1: Fraction
    sensitivity: Fraction
    specificity: Fraction
    log_loss: Annotated[Number, Field(ge=0)]
    probabilities: tuple[Fraction, ...] = ()
    labels: tuple[Count, ...] = ()


class ChosenThresholds(Card):
    """`cytomil.mil.thresholds.Thresholds` and how they were chosen."""

    decision: Fraction
    low: Fraction
    decision_range: tuple[Fraction, Fraction]
    low_range: tuple[Fraction, Fraction]
    sensitivity_wanted: Fraction | None = None
    chosen_by: Text = ""

    @model_validator(mode="after")
    def _in_order(self) -> ChosenThresholds:
        if self.low > self.decision:
            raise ValueError("'low' should be at most 'decision'")
        return self


class FeedbackCard(Card):
    """Readers' verdicts that the model learned from: ``confirmed`` and ``rejected`` cells, and unused verdicts.

    ``auroc`` and ``auroc_without`` are measured on held-out training bags, with and without the verdicts.
    """

    confirmed: Count
    rejected: Count
    unused: Count = 0
    auroc: Fraction
    auroc_without: Fraction


class _Fitted(Card):
    """The fields that `save_triage_model` adds."""

    aggregator: AggregatorCard
    score_meaning: Text
    encoder_sha256: Text
    aggregator_sha256: Text


class ModelDescription(Card):
    """Metrics and settings of a fit, as recorded in triage.json.

    ``preparation_sha256`` and ``engine`` are None, and ``orientations`` is 1, for older models.
    ``epochs_chosen`` is None for aggregators without epochs. ``cutting``: how the training cells were cut out of slides;
    None if they were single images. ``reference_shares`` are the fractions of normal training cells per bin of
    ``score_bin_edges``. ``limits`` are sentences for readers. ``feedback`` is None for models that did not learn from
    readers' verdicts. ``features`` is the folder of the training features, relative to the model's. ``fitted_to`` lists the
    training bags. Both are empty for older models.
    """

    made: Text
    synthetic: Flag
    collapsed: Flag
    uses_instance_labels: Flag = False
    trained_on: TrainedOn
    held_out: HeldOutFigures
    thresholds: ChosenThresholds
    epochs_chosen: Count | None = None
    score_bin_edges: tuple[Number, ...]
    reference_shares: tuple[Fraction, ...]
    versions: dict[str, Text] = Field(default_factory=dict)
    settings: dict[str, Any]
    layer: Text
    preparation_sha256: Text | None = None
    orientations: Annotated[Count, AfterValidator(require_group)] = 1
    engine: Text | None = None
    cutting: Cutting | None
    limits: tuple[Text, ...]
    feedback: FeedbackCard | None = None
    features: Text = ""
    fitted_to: tuple[FittedBag, ...] = ()

    @model_validator(mode="after")
    def _bins_fit(self) -> ModelDescription:
        if len(self.score_bin_edges) != len(self.reference_shares) + 1:
            raise ValueError("'score_bin_edges' should have one entry more than 'reference_shares'")
        if list(self.score_bin_edges) != sorted(set(self.score_bin_edges)):
            raise ValueError("'score_bin_edges' should rise")
        return self


class TriageCard(ModelDescription, _Fitted):
    """triage.json."""


@dataclass(frozen=True)
class TriageModel:
    """Encoder, fitted aggregators and novelty check, ready to assess bags. ``card`` is the content of triage.json."""

    path: Path
    encoder: EncoderBundle
    ensemble: Ensemble
    novelty: Novelty
    card: TriageCard

    @property
    def layer(self) -> Layer:
        """The layer of the encoder that the aggregators read."""
        return stored_layer(self.card.layer)

    @property
    def orientations(self) -> int:
        """The number of orientations over which a cell's embedding is averaged; 1 for older models."""
        return self.card.orientations

    @property
    def cutting(self) -> Cutting | None:
        """How the training cells were cut out of slides; None if they were single images."""
        return self.card.cutting


def save_triage_model(
    path: Path, encoder: EncoderBundle, ensemble: Ensemble, novelty: Novelty, description: ModelDescription
) -> TriageModel:
    """Write a triage model, replacing the whole folder. ``description`` has the further entries of triage.json."""
    with replacing_folder(path) as folder:
        keep = {key: value for key, value in encoder.card.to_json().items() if key not in _WRITTEN_BY_BUNDLE}
        save_bundle(folder / ENCODER_FOLDER, encoder.encoder, encoder.transform, keep)
        for source in (encoder.path, path / ENCODER_FOLDER):
            keep_engines(source, folder / ENCODER_FOLDER)
        tensors: dict[str, Tensor] = {}
        for i, member in enumerate(ensemble.members):
            state = member.aggregator.state_dict()
            tensors |= {f"{i}.model.{name}": tensor.contiguous() for name, tensor in state.items()}
            tensors |= {f"{i}.mean": member.standardise.mean.clone(), f"{i}.std": member.standardise.std.clone()}
            tensors |= {f"{i}.reference": torch.tensor(member.reference, dtype=torch.float64)}
        tensors |= {f"novelty.{name}": tensor.contiguous() for name, tensor in novelty.tensors().items()}
        save_weights(tensors, folder / WEIGHTS_NAME)
        card = {
            "schema": SCHEMA,
            "aggregator": {
                "name": ensemble.name,
                "members": len(ensemble.members),
                "instance_score": ensemble.instance_score.value,
                **ensemble.members[0].aggregator.config,
            },
            "score_meaning": ensemble.meaning,
            "encoder_sha256": encoder.sha256,
            "aggregator_sha256": sha256_of_file(folder / WEIGHTS_NAME),
            **description.to_json(),
        }
        write_json_card(folder / CARD_NAME, card)
        # Engines are not included, because `cytomil compile` may replace them, and each has its own record of hashes.
        encoder_files = (f"{ENCODER_FOLDER}/{name}" for name in (bundle.CARD_NAME, bundle.WEIGHTS_NAME))
        write_file_manifest(folder, [folder / name for name in (CARD_NAME, WEIGHTS_NAME, *encoder_files)])
    return load_triage_model(path)


def load_triage_model(path: Path) -> TriageModel:
    """Load a triage model and check its weights against triage.json.

    Raises:
        NotFoundError: there is no such folder.
        TriageModelError: it is incomplete, damaged, or cannot be used with this version of cytomil.
    """
    put_back(path)
    require_folder(path, "cytomil fit-mil")
    card = read_card(path / CARD_NAME, TriageCard, SCHEMA, TriageModelError, "cytomil fit-mil")
    weights = path / WEIGHTS_NAME
    if not weights.is_file() or sha256_of_file(weights) != card.aggregator_sha256:
        raise TriageModelError(f"{weights} is missing or damaged, or was replaced. Fit again with `cytomil fit-mil`.")
    try:
        encoder = load_bundle(path / ENCODER_FOLDER)
        tensors = load_file(weights)
        ensemble = _load_ensemble(tensors, card.aggregator)
        novelty = Novelty(**{field.name: tensors[f"novelty.{field.name}"] for field in fields(Novelty)})
    except (EncoderBundleError, NotFoundError) as error:
        raise TriageModelError(f"the encoder inside {path} cannot be used: {error}") from None
    except SettingsError as error:
        raise TriageModelError(f"{path} cannot be used here: {error}") from None
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise TriageModelError(f"{path} does not hold what its {CARD_NAME} describes ({str(error)[:300]}).") from None
    if encoder.sha256 != card.encoder_sha256:
        raise TriageModelError(
            f"the encoder inside {path} is not the one that {CARD_NAME} names. Fit again with `cytomil fit-mil`."
        )
    try:
        made_with = preparation_sha256(stored_layer(card.layer), encoder.transform.sha256)
    except FeatureFileError as error:
        raise TriageModelError(f"{path} cannot be used here: {error}") from None
    if (card.preparation_sha256 or encoder.transform.sha256) != made_with:
        raise TriageModelError(
            f"{path} was fitted to morphology measurements that differ from those of this version of cytomil. "
            "Embed and fit again: `cytomil embed`, `cytomil fit-mil`."
        )
    return TriageModel(path, encoder, ensemble, novelty, card)


@dataclass(frozen=True)
class Weakness:
    """A reason to doubt a model's calls: a short ``title``, and a ``text`` of one or two sentences."""

    title: str
    text: str


def auroc_text(held_out: HeldOutFigures) -> str:
    """The AUROC on held-out training slides with its interval, as text for readers."""
    low, high = held_out.auroc_interval
    return f"AUROC {held_out.auroc:.2f}, 95 % interval {low:.2f} to {high:.2f}; 0.5 is chance"


def weaknesses(n: int, held_out: HeldOutFigures) -> tuple[Weakness, ...]:
    """The weaknesses of a model fitted to ``n`` slides, worst first; empty for a sound model."""
    found = []
    low, high = held_out.auroc_interval
    measured = auroc_text(held_out)
    if high < _CHANCE:
        found.append(
            Weakness(
                "WORSE THAN CHANCE",
                f"On held-out training slides, the model ranked healthy slides above diseased ones ({measured}). "
                "Do not use its order or its calls.",
            )
        )
    elif low <= _CHANCE:
        found.append(
            Weakness(
                "MAY BE NO BETTER THAN CHANCE",
                f"On held-out training slides, it is not certain that the model ranks better than chance ({measured}). "
                "Do not rely on its order or its calls.",
            )
        )
    if n < FEW_BAGS:
        found.append(
            Weakness(
                f"LEARNT FROM {n} SLIDES",
                f"With fewer than {FEW_BAGS} training slides, thresholds and metrics may be far off ({measured}). "
                "Read every slide as if it had no call.",
            )
        )
    return tuple(found)


_WRITTEN_BY_BUNDLE = frozenset({"schema", "architecture", "transform", "normalisation", "weights_sha256"})


def _load_ensemble(tensors: dict[str, Tensor], card: AggregatorCard) -> Ensemble:
    kind = find_aggregator(card.name)
    members = []
    for i in range(card.members):
        aggregator = kind(**card.config)
        prefix = f"{i}.model."
        aggregator.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        standardise = Standardiser(tensors[f"{i}.mean"], tensors[f"{i}.std"])
        members.append(Member(aggregator.eval(), standardise, float(tensors[f"{i}.reference"])))
    return Ensemble(card.name, tuple(members), card.instance_score)
