"""All backends by name, and the settings of engines. No backend is imported before it is used.

To add one to cytomil, write one file and one line below. Another package adds one by an entry point of the group
``cytomil.engines`` that names a subclass of `Backend`; docs/how-to/extend.md has an example.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field

from cytomil.config import Config, OwnOptions, own_config
from cytomil.errors import SettingsError
from cytomil.layer import known_layers
from cytomil.registry import Registry

if TYPE_CHECKING:
    from cytomil.encoders.engines.engine import Backend


AUTO, EAGER = "auto", "eager"

ENGINES = Registry(
    "engine",
    "cytomil.engines",
    "cytomil.encoders.engines",
    {
        "openvino": "openvino:OpenVino",
        "ncnn": "ncnn:Ncnn",
        "tensorrt": "tensorrt:TensorRt",
        "torch-compile": "torch_compile:TorchCompile",
    },
)


def find_backend(name: str) -> type[Backend]:
    """The class of this name, cytomil's own or an installed package's. Raises `SettingsError` if there is none."""
    from cytomil.encoders.engines.engine import Backend

    return ENGINES.load(name, Backend)  # type: ignore[type-abstract]


def load_backend(name: str, options: OwnOptions | None = None) -> Backend:
    """A backend with its own settings.

    Args:
        name: the name of the backend.
        options: key → value, per backend. Only those of ``name`` are read. Missing keys have their defaults.

    Raises:
        SettingsError: there is no such backend, it has no such setting, or a value is not allowed.
    """
    backend = find_backend(name)
    return backend(name, own_config("engine", name, backend.Config, options or {}, CompileConfig.model_fields))


def selectable() -> tuple[str, ...]:
    """Values of ``--engine`` in `embed` and `rank`, without names that include a precision, such as ``openvino-int8``."""
    return (AUTO, EAGER, *ENGINES.names())


def known_engine(name: str) -> str:
    """Return ``name`` if it is one of `selectable` or the name of a stored engine, such as ``openvino-int8``.

    Raises:
        ValueError: the name is unknown. The message lists the known ones.
    """
    if name in (AUTO, EAGER) or name in ENGINES:
        return name
    known = selectable()
    engine = name.rpartition("-")[0]
    if name in known:
        return name
    if engine not in known[2:]:
        raise ENGINES.unknown(name, known)
    try:
        # This loads the backend's module, so it is done only for a name with a precision.
        stored = find_backend(engine).stored_names(engine)
    except SettingsError as error:
        raise ValueError(str(error)) from None
    if name not in stored:
        raise ENGINES.unknown(name, [engine, *stored])
    return name


EngineName = Annotated[
    str,
    AfterValidator(known_engine),
    Field(
        description="engine that runs the encoder; auto: the fastest one stored by `cytomil compile`, else eager; a "
        "library's name: its fastest engine; a full name such as openvino-int8: that engine"
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
        description="library that compiles the encoder; `cytomil doctor` lists devices and precisions of each; tensorrt has "
        "never been run on a GPU",
    )
    precision: Precision = Field(
        Precision.AUTO,
        description="number format, if the engine supports it; auto: the engine's default for this machine (openvino: bf16 "
        "if the processor supports it, else float32)",
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
