"""What features are made of: one of the encoder's layers, and the cell's description after it where the layer says so."""

from __future__ import annotations

from cytomil.errors import FeatureFileError
from cytomil.files import sha256_of_json
from cytomil.layer import Layer
from cytomil.morphology.descriptors import DESCRIPTION, N_DESCRIPTORS, SIDE


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
