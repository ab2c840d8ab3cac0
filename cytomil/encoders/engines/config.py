"""Settings of engines: the engine that runs the encoder, and those of `compile`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from cytomil.config import Config, OwnOptions
from cytomil.encoders.engines.registry import ENGINES, known_engine
from cytomil.layer import known_layers

EngineName = Annotated[
    str,
    AfterValidator(known_engine),
    Field(
        description="engine that runs the encoder; auto: the fastest that `cytomil compile` stored, else eager; a library's "
        "name: its fastest; a name such as openvino-int8: that one"
    ),
]
"""The engine with which `embed` and `rank` run the encoder."""


class Precision(StrEnum):
    """Number format of a compiled engine."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"


class CompileConfig(Config):
    """Settings of `compile`, which makes a faster form of the encoder for this machine."""

    encoder: Path = Field(Path("models/encoder"), description="encoder bundle to compile; it also stores the engine")
    bags: Path = Field(Path("data/bags"), description="folder with bags.csv; the engine is verified on training cells")
    engine: Annotated[str, AfterValidator(ENGINES.known)] = Field(
        "openvino",
        description="what compiles the encoder; `cytomil doctor` lists devices and precisions of each; tensorrt has never "
        "been run on a GPU",
    )
    precision: Precision = Field(
        Precision.AUTO,
        description="number format, one that the engine offers; auto: the engine's choice for this machine, openvino's is "
        "bf16 if the processor supports it, else float32",
    )
    layer: Annotated[str, AfterValidator(known_layers)] = Field(
        "auto", description="layers that the engine computes, as in embed's --layer; separate several with spaces"
    )
    options: OwnOptions = Field(
        {},
        description="settings specific to an engine, such as openvino's calibration_cells, by its name; "
        "`compile --engine NAME --help` lists them",
    )
    cells: int = Field(512, ge=40, description="number of training cells on which the engine is compared with eager")
    seed: int = Field(0, ge=0, description="seed of the selection of cells")
    device: str = Field("auto", description="'auto', 'cpu', 'cuda' or 'cuda:N'")
