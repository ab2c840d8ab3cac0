"""Command-line options made from the settings, so that names, defaults, ranges and units stand in one place."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from cytomil.app.settings import Settings

ParamsFile = Annotated[
    Path | None, typer.Option("--params", help="settings file", show_default="params.yaml, where there is one")
]
Profile = Annotated[
    str | None, typer.Option("--profile", help="profile in the settings file, such as 'paper'", show_default="default")
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON document to standard output")]
AcceptLeftOut = Annotated[
    bool,
    typer.Option(
        "--accept-left-out",
        help="exit status 0, not 3, where some slides or cells could not be used; they are listed all the same",
    ),
]


def option(section: str, key: str, check: Callable[[Any], Any] | None = None) -> Any:
    """The option ``--key`` for a setting; not given, the environment, params.yaml or the setting's default decide.

    A `ValueError` of ``check`` is wrong usage, as a name outside of an enumeration is.
    """
    description, default = _describe(section, key)

    def checked(value: Any) -> Any:
        try:
            return value if value is None or check is None else check(value)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    flag = f"--{key.replace('_', '-')}"
    return typer.Option(flag, help=description, show_default=default, callback=checked if check else None)


def argument(section: str, key: str) -> Any:
    """The positional argument for a setting, see `option`."""
    description, default = _describe(section, key)
    return typer.Argument(help=description, show_default=default, metavar=key.upper())


def given(section: str, values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of a command, by its ``locals()``, as `cytomil.app.settings.load` takes them.

    An option that takes a list may be given several times, and each time hold several names with commas between.
    """
    known = Settings.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
    return {section: {key: _joined(value) for key, value in values.items() if key in known}}


def _joined(value: Any) -> Any:
    if isinstance(value, list):
        return ",".join(value) if value else None
    return value


def _describe(section: str, key: str) -> tuple[str, str]:
    field = Settings.model_fields[section].annotation.model_fields[key]  # type: ignore[union-attr]
    default = field.default
    if isinstance(default, Enum):
        default = default.value
    if default is None or default == ():
        default = "none"
    return field.description or "", str(default)
