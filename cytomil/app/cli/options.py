"""Command-line options generated from the configurations: names, defaults, ranges and units are written once."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperCommand

from cytomil.app.cli.console import plain_errors
from cytomil.app.settings import Settings, load
from cytomil.config import Config
from cytomil.encoders.engines.registry import selectable
from cytomil.errors import SettingsError

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
OWN = "options"
"""The field that holds the own settings of a method, an aggregator or an engine; any other flag goes there."""

Given = dict[str, dict[str, Any]]
Check = Callable[[Any], Any]


def generated(
    section: str, argument: str = "", checks: dict[str, Check] | None = None, chosen_by: str = ""
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator: a command with an option for every setting of ``section``, and the function's own parameters after them.

    The function gets the options that were given as its first argument, as `cytomil.app.settings.load` takes them.
    ``argument`` is the setting that is positional. A `ValueError` of a check is wrong usage, exit status 2. ``chosen_by``
    is the setting that names a method, an aggregator or an engine: other flags are its own settings.
    """
    model = section_model(section)

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        settings = [
            _parameter(section, key, field, key == argument, (checks or {}).get(key))
            for key, field in model.model_fields.items()
            if key != OWN
        ]
        context = [inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
        parameters = [*(context if chosen_by else ()), *(one for one in own if _leads(one)), *settings]
        parameters += [one for one in own if not _leads(one)]

        def command(**values: Any) -> None:
            given = {key: _joined(values.pop(key)) for key in model.model_fields if key in values}
            if chosen_by and (flags := _own_flags(values.pop("context"))):
                given[OWN] = {_chosen(section, chosen_by, given, values): flags}
            function({section: given}, **values)

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        return command

    return decorate


def given_among(options: Given, section: str, names: Collection[str]) -> list[str]:
    """Which of these settings the command line gives. Modes of a verb share params.yaml, where all may stand."""
    return [name for name in names if options[section].get(name) is not None]


def section_model(section: str) -> type[Config]:
    """The configuration of a section of params.yaml."""
    model = Settings.model_fields[section].annotation
    assert isinstance(model, type)
    assert issubclass(model, Config)
    return model


def _chosen(section: str, key: str, given: dict[str, Any], values: dict[str, Any]) -> str:
    """The method, aggregator or engine that the command line, the environment or params.yaml names."""
    if given.get(key):
        return str(given[key])
    with plain_errors():
        settings = load({}, values.get("params"), values.get("profile"))
    return str(getattr(getattr(settings, section), key))


def _leads(parameter: inspect.Parameter) -> bool:
    """Whether it is positional on the command line, and so comes before all options."""
    return any(isinstance(one, typer.models.ArgumentInfo) for one in getattr(parameter.annotation, "__metadata__", ()))


def _parameter(section: str, key: str, field: FieldInfo, positional: bool, check: Check | None) -> inspect.Parameter:
    default = _shown(field.default)
    name = f"--{key.replace('_', '-')}"
    described = field.description or ""

    def checked(value: Any) -> Any:
        try:
            return value if value is None or check is None else check(value)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    kind: Any = (
        typer.Argument(help=described, show_default=default, metavar=key.upper())
        if positional
        else typer.Option(name, help=described, show_default=default, callback=checked if check else None)
    )
    annotation = Annotated[_command_type(field.annotation) | None, kind]  # type: ignore[valid-type]
    return inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _command_type(annotation: Any) -> Any:
    """The type that Typer parses. pydantic checks everything else and gives one line for an error."""
    if get_origin(annotation) is Annotated:
        return _command_type(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return str
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = {_command_type(one) for one in get_args(annotation) if one is not types.NoneType}
        return kinds.pop() if len(kinds) == 1 else str
    if get_origin(annotation) is tuple:
        return list[str]
    return annotation


def _shown(default: Any) -> str:
    if isinstance(default, Enum):
        default = default.value
    return "none" if default is None or default == () else str(default)


def _joined(value: Any) -> Any:
    if isinstance(value, list):
        return ",".join(value) if value else None
    return value


def _own_flags(context: typer.Context) -> dict[str, str | bool]:
    """``--some-key VALUE``, ``--some-key=VALUE`` and ``--flag`` that are no option of the command, by key."""
    found: dict[str, str | bool] = {}
    words = list(context.args)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise typer.BadParameter(f"unexpected extra argument '{word}'.", context)
        key, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else ""
        name = key.replace("-", "_")
        found[name.removeprefix("no_")] = value or not name.startswith("no_")
    return found


class ListsNames(TyperCommand):
    """A command whose ``--help`` lists the names that an option takes, those of other packages included."""

    names: ClassVar[Mapping[str, Callable[[], Sequence[str]]]] = {}
    """Option's key → the names. They are read only for the help, because entry points take a moment."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The command's help, with the names in place of the options' types."""
        for parameter in self.params:
            if parameter.name in self.names:
                parameter.metavar = f"<{'|'.join(self.names[parameter.name]())}>"
        super().format_help(ctx, formatter)


class OwnSettings(ListsNames):
    """A command whose chosen method, aggregator or engine adds its own settings to ``--help``."""

    chosen_by: ClassVar[str]
    """The flag that names the method, the aggregator or the engine."""

    def configuration(self, name: str) -> type[Config]:
        """The configuration that holds the own settings of ``name``. Raises `SettingsError` for an unknown name."""
        raise NotImplementedError

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the arguments, because ``--help`` ends parsing before the choice is known."""
        ctx.meta["line"] = list(args)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The command's help, then the own settings of what the line names."""
        super().format_help(ctx, formatter)
        name = _value_of(self.chosen_by, ctx.meta["line"])
        if not name:
            typer.echo(f"{self.chosen_by} NAME --help also lists the settings that NAME has of its own.")
            return
        try:
            fields = self.configuration(name).model_fields
        except SettingsError as error:
            raise typer.BadParameter(str(error), ctx) from None
        rows = [
            (f"--{key.replace('_', '-')}", _shown(field.default), field.description or "")
            for key, field in fields.items()
        ]
        if not rows:
            typer.echo(f"{name} has no settings of its own.")
            return
        table = Table("option", "default", "what it does", title=f"{name}'s own settings", box=box.ROUNDED, expand=True)
        for row in rows:
            table.add_row(*map(escape, row))
        Console(highlight=False).print(table)


def _value_of(flag: str, line: list[str]) -> str:
    for word, following in zip(line, [*line[1:], ""], strict=True):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return ""


class EngineCommand(ListsNames):
    """A command that runs the encoder, with the names of all engines in its help."""

    names: ClassVar = {"engine": selectable}
