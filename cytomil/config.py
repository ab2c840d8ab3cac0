"""What every configuration has in common: frozen pydantic models that refuse an unknown key."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import NoDecode

from cytomil.errors import SettingsError
from cytomil.text import did_you_mean


class Config(BaseModel):
    """Base of all configurations. An unknown key, a value out of range, infinity and NaN raise `pydantic.ValidationError`."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def changed(settings: Config) -> list[str]:
    """The names of the settings that differ from their defaults. Others do not count, because params.yaml names all."""
    fields = type(settings).model_fields
    return [name for name, field in fields.items() if getattr(settings, name) != field.default]


def note_unused(names: Iterable[str], where: str, note: Callable[[str], None]) -> None:
    """Send ``note`` one line if any ``names`` are given, of settings without effect. ``where`` ends it: "on class folders"."""
    if flags := ", ".join(f"--{name.replace('_', '-')}" for name in names):
        note(f"{flags}: no effect {where}")


def _split_names(value: Any) -> Any:
    return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_names)]
"""Several names; a string is split at its commas."""


OwnOptions = dict[str, dict[str, Any]]
"""Settings that belong to one method, aggregator or engine, by its name. Only those of the chosen one are read."""


def own_config(
    kind: str, name: str, model: type[Config], options: Mapping[str, Mapping[str, Any]], beside: Collection[str] = ()
) -> Config:
    """The settings in ``options`` that belong only to the method, aggregator or engine ``name``, or its defaults.

    ``kind`` is the word for messages, such as "method".

    ``beside`` are the names of the settings that all of its kind have, because a key may be a misspelling of one.
    Raises `SettingsError` with one line if a key is unknown or a value is not allowed.
    """
    given = dict(options.get(name) or {})
    try:
        return model.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"][:1]) or next(iter(given), "")
    if first["type"] != "extra_forbidden":
        raise SettingsError(f"{kind} '{name}': {key}: {why_refused(first)}")
    known = list(model.model_fields)
    all_there_are = f"There are: {', '.join(known)}." if known else "It has no settings of its own."
    hint = did_you_mean(key, [*known, *beside]) or all_there_are
    raise SettingsError(f"{kind} '{name}' has no setting '{key}'. {hint}")


def why_refused(error: ErrorDetails) -> str:
    """What is wrong with a value, and the value, as the end of a one-line message. ``error`` is one of pydantic's."""
    message = error["msg"].removeprefix("Value error, ")
    return f"{message[0].lower()}{message[1:]} (it is {error['input']!r})."
