"""How `embed` turns bags into feature caches."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from cytomil.config import Config
from cytomil.encoders.engines.registry import EngineName
from cytomil.layer import known_layer


def require_group(n: int) -> int:
    """Return ``n`` if ``n`` orientations form a mathematical group. Raises ValueError otherwise."""
    if n not in (1, 2, 4, 8):
        raise ValueError("must be 1, 2, 4 or 8")
    return n


class Split(StrEnum):
    """Which bags of the manifest."""

    TRAIN = "train"
    TEST = "test"
    ALL = "all"


class EmbedConfig(Config):
    """From bags to feature caches."""

    bags: Path = Field(Path("data/bags"), description="folder with bags.csv")
    encoder: Path = Field(Path("models/encoder"), description="folder of the encoder bundle")
    out: Path = Field(Path("data/features"), description="folder for the feature caches")
    layer: Annotated[str, AfterValidator(known_layer)] = Field(
        "auto",
        description="h: the encoder's output; z: the projector's; stages:1,2,4:mean,max,spread: statistics of inner stages; "
        "auto: the encoder's default stages; morphology: those, plus measurements of nucleus and cytoplasm",
    )
    split: Split = Field(Split.ALL, description="which bags to embed")
    orientations: Annotated[int, AfterValidator(require_group)] = Field(
        2, description="rotations and mirror images over which a cell's embedding is averaged; multiplies the cost"
    )
    batch_size: int = Field(256, ge=1, description="cells per forward pass")
    dtype: Literal["float16", "float32"] = Field("float16", description="number format on disk")
    workers: int = Field(0, ge=0, description="threads that decode cells; 0: one per core")
    engine: EngineName = "auto"
    device: str = Field("auto", description="'auto', 'cpu', 'cuda' or 'cuda:N'")
    ray_address: str = Field(
        "", description="distribute over Ray: 'local', or HOST:PORT of a running cluster; empty: no Ray"
    )
