"""Every setting of every verb: one section per verb, the same names and defaults as params.yaml.

A setting comes from the first of these that gives it: the command line, the environment
(``CYTOMIL_PRETRAIN__EPOCHS=20``), the chosen profile in params.yaml, the section in params.yaml, the default.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as SourceError

from cytomil.bags.config import MakeBagsConfig
from cytomil.config import why_refused
from cytomil.encoders.engines.registry import CompileConfig
from cytomil.errors import SettingsError
from cytomil.evaluation.config import EvaluateConfig
from cytomil.features.config import EmbedConfig
from cytomil.mil.config import FitMilConfig
from cytomil.text import did_you_mean
from cytomil.training.config import PretrainConfig
from cytomil.triage.config import RankConfig

PARAMS_FILE = Path("params.yaml")

_PREFIX = "CYTOMIL_"


class Settings(BaseSettings):
    """All sections, read from the command line, the environment and params.yaml."""

    model_config = SettingsConfigDict(extra="forbid", env_prefix=_PREFIX, env_nested_delimiter="__", frozen=True)

    profile: str = Field("default", description="a name under 'profiles:' in params.yaml laid over the sections")
    make_bags: MakeBagsConfig = MakeBagsConfig()
    pretrain: PretrainConfig = PretrainConfig()
    compile: CompileConfig = CompileConfig()
    embed: EmbedConfig = EmbedConfig()
    fit_mil: FitMilConfig = FitMilConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    rank: RankConfig = RankConfig()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Use only the values that `load` passes. It has merged the sources, and its errors name the source."""
        return (init_settings,)


def load(
    options: dict[str, dict[str, Any]] | None = None, params: Path | None = None, profile: str | None = None
) -> Settings:
    """Merge params.yaml, a profile, the environment and ``options`` (section → key → value; None means not given).

    ``params`` is the file to read; None reads ``params.yaml`` in the working folder if there is one. Raises
    `SettingsError` for an unknown key, a value out of range, an unknown profile, or a file that is not YAML.
    """
    file = params or PARAMS_FILE
    document = _read_params(file, required=params is not None)
    environment = _read_environment()
    given = {section: {k: v for k, v in keys.items() if v is not None} for section, keys in (options or {}).items()}
    chosen = str(profile or environment.get("profile") or document.get("profile", "default"))
    profiles = document.pop("profiles", None) or {}
    if chosen != "default" and chosen not in profiles:
        if not file.exists():
            raise SettingsError(f"profile '{chosen}': there is no {file} in this folder. Name one with --params.")
        known = ", ".join(["default", *profiles])
        raise SettingsError(f"profile '{chosen}' is not in {file}; there are: {known}.")
    laid_over = profiles.get(chosen) or {}
    if not isinstance(laid_over, dict):
        raise SettingsError(f"{file}: profile '{chosen}' must hold sections such as 'pretrain:'; it is {laid_over!r}.")
    layers = {
        "command line": given,
        "environment": environment,
        str(file): _merge(document, laid_over),
    }
    merged: dict[str, Any] = {}
    for layer in reversed(layers.values()):
        merged = _merge(merged, layer)
    try:
        return Settings(**(merged | {"profile": chosen}))
    except ValidationError as error:
        raise SettingsError(_one_line(error, layers)) from None


def _read_params(file: Path, required: bool) -> dict[str, Any]:
    if not file.exists() and not required:
        return {}
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise SettingsError(f"{file} cannot be read ({error.strerror}). Name another with --params.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SettingsError(f"{file} is not valid YAML: {str(error)[:300]}") from None
    if not isinstance(document, dict):
        raise SettingsError(f"{file} must hold sections such as 'pretrain:', not a {type(document).__name__}.")
    for name, section in document.items():
        if name != "profile" and section is not None and not isinstance(section, dict):
            raise SettingsError(f"{file}: '{name}' must hold settings as 'key: value' lines; it is {section!r}.")
    return {name: section for name, section in _with_names(document).items() if section is not None}


def _with_names(document: Any) -> Any:
    """The document with every key as a string, because YAML reads ``5:`` and ``yes:`` as other types."""
    if not isinstance(document, dict):
        return document
    return {str(key): _with_names(value) for key, value in document.items()}


def _read_environment() -> dict[str, Any]:
    sections = tuple(Settings.model_fields)
    for name in sorted(name for name in os.environ if name.startswith(_PREFIX)):
        head, *keys = name.removeprefix(_PREFIX).lower().split("__")
        if head not in sections or (head == "profile" and keys):
            raise SettingsError(f"environment variable {name}: no such setting.{_suggestion(head, sections)}")
    try:
        return EnvSettingsSource(Settings)()
    except SourceError as error:
        raise SettingsError(f"environment: {error}") from None


def _merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _one_line(error: ValidationError, layers: dict[str, dict[str, Any]]) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    blamed = next((name for name, layer in layers.items() if _holds(layer, path)), "settings")
    place = f"{blamed}: {'.'.join(path[:2])}"
    if first["type"] == "extra_forbidden":
        section = Settings.model_fields.get(path[0])
        known = section.annotation.model_fields if section and len(path) > 1 else Settings.model_fields  # type: ignore[union-attr]
        return f"{place} is not a setting of cytomil.{_suggestion(path[-1], known)}"
    return f"{place}: {why_refused(first)}"


def _holds(layer: Any, path: list[str]) -> bool:
    for part in path[:2]:
        if not isinstance(layer, dict) or part not in layer:
            return False
        layer = layer[part]
    return True


def _suggestion(word: str, known: Iterable[str]) -> str:
    return " " + (did_you_mean(word, known) or f"There are: {', '.join(known)}.")
