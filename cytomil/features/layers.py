"""What features can be made of: the encoder's layers, and layer ``morphology``, multi with the cell's description after it."""

from __future__ import annotations

from cytomil.encoders.architecture import Encoder
from cytomil.encoders.stages import MULTI, layers_of
from cytomil.files import sha256_of_json
from cytomil.morphology.descriptors import DESCRIPTION, N_DESCRIPTORS, SIDE
from cytomil.settings import Layer


def default_layer(encoder: Encoder) -> Layer:
    """The layer that tells most: morphology of a ResNet, z of others."""
    return Layer.MORPHOLOGY if MULTI in layers_of(encoder) else Layer.Z


def encoder_layer(layer: str) -> str:
    """Which of the encoder's own layers an engine gives for ``layer``."""
    return MULTI if layer == Layer.MORPHOLOGY else layer


def n_described(layer: str) -> int:
    """How many of a feature's last columns are the cell's morphology and not the encoder's."""
    return N_DESCRIPTORS if layer == Layer.MORPHOLOGY else 0


def preparation_sha256(layer: str, transform_sha256: str) -> str:
    """Names all that is done to a cell's image: the encoder's transform, and how the cell is described, where it is."""
    return sha256_of_json([transform_sha256, DESCRIPTION]) if n_described(layer) else transform_sha256


def seen_px(layer: str, image_size: int) -> int:
    """Pixels a side of the finest picture that is made of a cell, the encoder's being ``image_size``."""
    return max(image_size, SIDE) if n_described(layer) else image_size
