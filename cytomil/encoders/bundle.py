"""The encoder bundle: a folder with the weights (safetensors, no pickle) and everything needed to use and judge them."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file

from cytomil import cards
from cytomil.bags.manifest import FittedBag
from cytomil.cards import Card, Count, Flag, Number, Text
from cytomil.encoders.architecture import Architecture, Encoder
from cytomil.encoders.transform import CellTransform
from cytomil.errors import EncoderBundleError, SettingsError, require_folder, require_replaceable
from cytomil.files import put_back, replacing_folder, sha256_of_file, write_json_card
from cytomil.slides.find import Cutting
from cytomil.weights import save_weights

SCHEMA = "cytomil.encoder/1"
WEIGHTS_NAME = "encoder.safetensors"
CARD_NAME = "encoder.json"
ENGINES_FOLDER = "engines"
ENGINE_CARD_NAME = "engine.json"
OWN_FILES: tuple[str, ...] = (CARD_NAME, WEIGHTS_NAME, f"{ENGINES_FOLDER}/*")


class TrainingData(Card):
    """The bags that an encoder was trained on. Missing values are 0, "" or ().

    ``cutting`` is how their cells were cut out of slides; None if they were single images or were cut in several ways.
    ``fitted_to`` lists them for methods that train.
    """

    fingerprint: Text = ""
    n_bags: Count = 0
    n_cells: Count = 0
    sources: tuple[Text, ...] = ()
    cutting: Cutting | None = None
    fitted_to: tuple[FittedBag, ...] = ()


class Normalisation(Card):
    """Mean and standard deviation per channel of pixels in 0 to 1."""

    mean: tuple[Number, ...]
    std: tuple[Number, ...]


class InitialWeightsCard(Card):
    """The initial weights of training."""

    file: Text
    sha256: Text
    tensors: Count = 0
    name: Text = ""


class EncoderCard(Card):
    """The content of encoder.json.

    ``history`` has one record per epoch. ``nt_xent_margin`` is in nats, and None for other losses.
    """

    architecture: Architecture
    transform: CellTransform
    normalisation: Normalisation
    weights_sha256: Text
    method: Text = ""
    start_weights: InitialWeightsCard | None = None
    frozen_stages: Count | None = None
    peak_learning_rate: Number | None = None
    caveats: tuple[Text, ...] = ()
    uses_instance_labels: Flag = False
    collapsed: Flag = False
    collapse_reason: Text = ""
    precision: Text = ""
    processes: Count = 1
    effective_rank: Number | None = None
    nt_xent_margin: Number | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    fingerprint: Text = ""
    history: tuple[dict[str, Number | None], ...] = ()
    versions: dict[str, Text] = Field(default_factory=dict)
    made: Text = ""
    data: TrainingData = TrainingData()
    synthetic: Flag = False


@dataclass(frozen=True)
class EncoderBundle:
    """An encoder on disk. ``card`` is the content of encoder.json."""

    path: Path
    encoder: Encoder
    transform: CellTransform
    sha256: str
    card: EncoderCard

    @property
    def caveats(self) -> tuple[str, ...]:
        """Caveats of the initial weights that readers of figures must know, as complete sentences."""
        return self.card.caveats

    @property
    def provenance(self) -> str:
        """The architecture and the origin of the weights, as JSON, for artefacts that the encoder makes."""
        known = ("architecture", "method", "start_weights", "weights_sha256")
        card = self.card.to_json()
        return json.dumps({key: card.get(key) for key in known})


def save_bundle(path: Path, encoder: Encoder, transform: CellTransform, metadata: dict[str, Any]) -> EncoderBundle:
    """Write a bundle and replace the folder as a whole. ``metadata`` is added to encoder.json (method, settings …).

    Raises:
        CytomilError: ``path`` is a folder with other files.
    """
    require_replaceable(path, CARD_NAME, OWN_FILES)
    with replacing_folder(path) as folder:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
        save_weights(state, folder / WEIGHTS_NAME)
        card = {
            "schema": SCHEMA,
            "architecture": asdict(encoder.architecture),
            "transform": asdict(transform),
            "normalisation": {"mean": encoder.mean.flatten().tolist(), "std": encoder.std.flatten().tolist()},
            "weights_sha256": sha256_of_file(folder / WEIGHTS_NAME),
            **metadata,
        }
        write_json_card(folder / CARD_NAME, card)
        keep_engines(path, folder)
    return load_bundle(path)


def stored_engines(path: Path) -> list[str]:
    """The names of the compiled engines in a bundle, whether they can run here or not."""
    folder = path / ENGINES_FOLDER
    return sorted(one.parent.name for one in folder.glob(f"[!.]*/{ENGINE_CARD_NAME}"))


def keep_engines(source: Path, folder: Path) -> None:
    """Copy the engines in the bundle ``source`` to the bundle ``folder`` if they were compiled from the same weights.

    A bundle that is rewritten with the same weights keeps its engines. A triage model gets the engines of its encoder.
    """
    weights_sha256 = sha256_of_file(folder / WEIGHTS_NAME)
    for name in stored_engines(source):
        engine, copied = source / ENGINES_FOLDER / name, folder / ENGINES_FOLDER / name
        try:
            made_for = json.loads((engine / ENGINE_CARD_NAME).read_text(encoding="utf-8"))["weights_sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a damaged engine cannot run
        if made_for == weights_sha256 and not copied.exists():
            copied.mkdir(parents=True)
            for file in engine.iterdir():
                shutil.copy2(file, copied)


def read_card(path: Path) -> EncoderCard:
    """Read and check encoder.json without loading the weights. Raises `EncoderBundleError` or `NotFoundError`."""
    put_back(path)
    require_folder(path, "cytomil pretrain")
    return cards.read_card(path / CARD_NAME, EncoderCard, SCHEMA, EncoderBundleError, "cytomil pretrain")


def load_bundle(path: Path) -> EncoderBundle:
    """Load a bundle, its weights checked against encoder.json. Raises `EncoderBundleError` or `NotFoundError`."""
    card = read_card(path)
    weights = path / WEIGHTS_NAME
    if not weights.is_file():
        raise EncoderBundleError(f"{path} has no {WEIGHTS_NAME}. Train again with `cytomil pretrain`.")
    sha256 = sha256_of_file(weights)
    if sha256 != card.weights_sha256:
        raise EncoderBundleError(
            f"{weights} is not the file that {CARD_NAME} describes (damaged or replaced). Train again."
        )
    try:
        encoder = Encoder(card.architecture)
        encoder.load_state_dict(load_file(weights))
    except SettingsError as error:
        raise EncoderBundleError(f"{path} cannot be opened here: {error}") from None
    except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise EncoderBundleError(
            f"{path} does not hold the encoder that {CARD_NAME} describes ({str(error)[:300]}). Train again."
        ) from None
    return EncoderBundle(path, encoder.eval(), card.transform, sha256, card)


def pick_device(device: str) -> torch.device:
    """The device; ``auto``: a CUDA GPU if there is one, else the CPU. Raises `EncoderBundleError` if it is missing."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise EncoderBundleError(f"device '{device}' is unknown. Use auto, cpu, cuda or cuda:0.") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise EncoderBundleError(f"PyTorch finds no CUDA GPU for device '{device}'. Use --device cpu.")
    return chosen
