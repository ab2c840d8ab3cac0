"""All backends by name. None of them is imported before it is used.

To add one to cytomil, write one file and one line below. Another package adds one by an entry point of the group
``cytomil.engines`` that names a subclass of `Backend`; docs/how-to/extend.md has an example.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cytomil.config import OwnOptions, own_config
from cytomil.errors import SettingsError
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
    from cytomil.encoders.engines.config import CompileConfig

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
