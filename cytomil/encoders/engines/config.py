"""Which engine runs the encoder, and how `compile` makes one."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from cytomil.config import Config
from cytomil.layer import known_layers


class EngineName(StrEnum):
    """What runs the encoder. ``openvino``, ``ncnn`` and ``tensorrt`` alone mean the fastest stored engine of that library."""

    AUTO = "auto"
    EAGER = "eager"
    OPENVINO = "openvino"
    OPENVINO_FLOAT32 = "openvino-float32"
    OPENVINO_BF16 = "openvino-bf16"
    OPENVINO_INT8 = "openvino-int8"
    NCNN = "ncnn"
    NCNN_FLOAT32 = "ncnn-float32"
    TORCH_COMPILE = "torch-compile"
    TENSORRT = "tensorrt"
    TENSORRT_FP16 = "tensorrt-fp16"
    TENSORRT_FLOAT32 = "tensorrt-float32"


class CompiledEngine(StrEnum):
    """What `cytomil compile` can make."""

    OPENVINO = "openvino"
    NCNN = "ncnn"
    TENSORRT = "tensorrt"
    TORCH_COMPILE = "torch-compile"


class Precision(StrEnum):
    """The numbers a compiled engine computes with."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"


class CompileConfig(Config):
    """A faster form of the encoder, for this machine."""

    encoder: Path = Field(Path("models/encoder"), description="encoder bundle to compile; it also stores the engine")
    bags: Path = Field(Path("data/bags"), description="folder with bags.csv; the engine is verified on training cells")
    engine: CompiledEngine = Field(
        CompiledEngine.OPENVINO,
        description="openvino, ncnn: processors; tensorrt: NVIDIA GPUs (never run yet); torch-compile: either",
    )
    precision: Precision = Field(
        Precision.AUTO,
        description="openvino: float32, bf16, int8; tensorrt: fp16, float32; ncnn, torch-compile: float32; auto: openvino's "
        "bf16 if the processor supports it, else float32",
    )
    layer: Annotated[str, AfterValidator(known_layers)] = Field(
        "auto", description="layers that the engine computes, as in embed's --layer; separate several with spaces"
    )
    cells: int = Field(512, ge=40, description="number of training cells on which the engine is compared with eager")
    seed: int = Field(0, ge=0, description="seed of the selection of cells")
    device: str = Field("auto", description="'auto', 'cpu', 'cuda' or 'cuda:N'")
