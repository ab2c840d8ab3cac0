"""The triage model: a folder with all that `rank` needs, and nothing that ties it to the machine it was made on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cytomil.encoders.bundle import EncoderBundle, load_bundle, save_bundle
from cytomil.errors import EncoderBundleError, NotFoundError, TriageModelError, require_folder
from cytomil.files import replacing_folder, sha256_of_file, write_json
from cytomil.mil.pamil import PAMIL
from cytomil.mil.train import Standardiser

SCHEMA = "cytomil.triage-model/1"
CARD_NAME = "triage.json"
WEIGHTS_NAME = "aggregator.safetensors"
ENCODER_FOLDER = "encoder"

SCORE_BIN_EDGES = tuple(float(edge) for edge in np.geomspace(1e-2, 1e3, 41))


@dataclass(frozen=True)
class Assessment:
    """What the model makes of one bag.

    ``probability`` of being positive, 0 to 1; ``scores`` (N,): each instance's attention score for the positive class as
    a multiple of the bag's average (1 = average).
    """

    probability: float
    scores: np.ndarray


@dataclass(frozen=True)
class TriageModel:
    """Encoder and aggregators, ready to assess bags. ``card`` is triage.json."""

    path: Path
    encoder: EncoderBundle
    members: tuple[tuple[PAMIL, Standardiser], ...]
    card: dict[str, Any]

    @property
    def layer(self) -> str:
        """The encoder's output that the aggregators read, h or z."""
        return str(self.card["layer"])

    @torch.inference_mode()
    def assess(self, values: np.ndarray) -> Assessment:
        """Assess a bag's embeddings, float32 (N ≥ 1, D): the mean over the ensemble."""
        return assess_with(self.members, values)


@torch.inference_mode()
def assess_with(members: Sequence[tuple[PAMIL, Standardiser]], values: np.ndarray) -> Assessment:
    """Assess a bag with an ensemble; see `Assessment`."""
    embeddings = torch.from_numpy(values)
    probabilities, scores = [], []
    for model, standardise in members:
        logits, attention = model(standardise(embeddings))
        probabilities.append(float(logits.softmax(dim=0)[1]))
        scores.append(attention[1].numpy() * len(values))
    return Assessment(float(np.mean(probabilities)), np.mean(scores, axis=0))


def score_shares(scores: np.ndarray) -> np.ndarray:
    """Share of instances in each bin of `SCORE_BIN_EDGES`; scores beyond the edges count in the outermost bins."""
    clipped = np.clip(scores, SCORE_BIN_EDGES[0], SCORE_BIN_EDGES[-1])
    counts, _ = np.histogram(clipped, SCORE_BIN_EDGES)
    return counts / len(scores)


def save_triage_model(
    path: Path, encoder: EncoderBundle, members: Sequence[tuple[PAMIL, Standardiser]], facts: dict[str, Any]
) -> TriageModel:
    """Write a triage model, replacing the folder whole. ``facts`` are added to triage.json."""
    with replacing_folder(path) as folder:
        keep = {key: value for key, value in encoder.card.items() if key not in _WRITTEN_BY_BUNDLE}
        save_bundle(folder / ENCODER_FOLDER, encoder.encoder, encoder.transform, keep)
        tensors: dict[str, Tensor] = {}
        for i, (model, standardise) in enumerate(members):
            tensors |= {f"{i}.model.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
            tensors |= {f"{i}.mean": standardise.mean.contiguous(), f"{i}.std": standardise.std.contiguous()}
        save_file(tensors, folder / WEIGHTS_NAME)
        card = {
            "schema": SCHEMA,
            "aggregator": {
                "name": "pamil",
                "members": len(members),
                "in_dim": members[0][0].prototypes.shape[1],
                "n_prototypes": members[0][0].prototypes.shape[0],
            },
            "encoder_sha256": encoder.sha256,
            "aggregator_sha256": sha256_of_file(folder / WEIGHTS_NAME),
            **facts,
        }
        write_json(folder / CARD_NAME, card)
    return load_triage_model(path)


def load_triage_model(path: Path) -> TriageModel:
    """Load a triage model, its weights checked against triage.json. Raises `TriageModelError` or `NotFoundError`."""
    require_folder(path, "cytomil fit-mil")
    try:
        card = json.loads((path / CARD_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TriageModelError(f"{path} has no {CARD_NAME}. Make a triage model with `cytomil fit-mil`.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TriageModelError(f"{path / CARD_NAME} is damaged ({error}). Fit again with `cytomil fit-mil`.") from None
    schema = card.get("schema") if isinstance(card, dict) else None
    if schema != SCHEMA:
        raise TriageModelError(f"{path / CARD_NAME} has schema {schema!r}; this version of cytomil reads {SCHEMA!r}.")
    weights = path / WEIGHTS_NAME
    if not weights.is_file() or sha256_of_file(weights) != card.get("aggregator_sha256"):
        raise TriageModelError(f"{weights} is missing, damaged or exchanged. Fit again with `cytomil fit-mil`.")
    try:
        encoder = load_bundle(path / ENCODER_FOLDER)
        members = _load_members(weights, card["aggregator"])
    except (EncoderBundleError, NotFoundError) as error:
        raise TriageModelError(f"the encoder inside {path} cannot be used: {error}") from None
    except (SafetensorError, RuntimeError, KeyError, TypeError) as error:
        raise TriageModelError(f"{path} does not hold what its {CARD_NAME} describes ({error}).") from None
    if encoder.sha256 != card.get("encoder_sha256"):
        raise TriageModelError(f"the encoder inside {path} is not the one {CARD_NAME} speaks of. Fit again.")
    return TriageModel(path, encoder, members, card)


_WRITTEN_BY_BUNDLE = frozenset({"schema", "architecture", "transform", "normalisation", "weights_sha256"})


def _load_members(weights: Path, shape: dict[str, Any]) -> tuple[tuple[PAMIL, Standardiser], ...]:
    tensors = load_file(weights)
    members = []
    for i in range(shape["members"]):
        model = PAMIL(shape["in_dim"], shape["n_prototypes"])
        prefix = f"{i}.model."
        model.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        members.append((model.eval(), Standardiser(tensors[f"{i}.mean"], tensors[f"{i}.std"])))
    return tuple(members)
