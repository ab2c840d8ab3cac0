"""Hooks of the documentation site: the reference pages are generated from cytomil itself while mkdocs builds."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from collections.abc import Callable
from enum import Enum
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

ROOT = Path(__file__).parent
if str(ROOT) not in sys.path:  # the pages describe the code beside them, not an installed cytomil
    sys.path.insert(0, str(ROOT))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each marker of a generated part by that part."""
    for name, generate in GENERATED.items():
        marker = f"<!-- generated: {name} -->"
        if marker in markdown:
            markdown = markdown.replace(marker, generate())
    return markdown


def command_line() -> str:
    """The help text of cytomil and of each of its verbs, as the terminal shows it."""
    overview = _help()
    commands = overview.partition(" Commands ")[2]
    verbs = re.findall(r"^[^\w\n]{1,4}([a-z][a-z-]*)  ", commands, flags=re.MULTILINE)
    if not verbs:
        raise RuntimeError(f"No verbs were found in the output of cytomil --help:\n{overview}")
    parts = [("cytomil", overview), *((f"cytomil {verb}", _help(verb)) for verb in verbs)]
    return "\n".join(f"## {title}\n\n```text\n{text}\n```\n" for title, text in parts)


def settings() -> str:
    """One table for each section of the settings: name, type, default, description."""
    parts = []
    for section, field in _settings_class().model_fields.items():
        model = field.annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            rows = [_row(name, setting) for name, setting in model.model_fields.items()]
            head = "| setting | type | default | meaning |\n| --- | --- | --- | --- |"
            about = " ".join((model.__doc__ or "").split())
            parts.append(f"## {section}\n\n{about}\n\n" + "\n".join([head, *rows]) + "\n")
    if not parts:
        raise RuntimeError("No section of settings was found.")
    return "\n".join(parts)


GENERATED: dict[str, Callable[[], str]] = {"command line": command_line, "settings": settings}


def _help(*verb: str) -> str:
    environment = os.environ | {"COLUMNS": "80", "TERMINAL_WIDTH": "80", "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "cytomil", *verb, "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    lines = (line.rstrip() for line in done.stdout.splitlines())
    return "\n".join(lines).strip("\n").replace("python -m cytomil", "cytomil")


def _settings_class() -> Any:
    for module in ("cytomil.app.settings", "cytomil.settings"):
        try:
            return import_module(module).Settings
        except ModuleNotFoundError as missing:
            if missing.name not in {module, "cytomil.app"}:
                raise
    raise RuntimeError("The class Settings was not found.")


def _row(name: str, field: FieldInfo) -> str:
    cells = [
        f"`{name}`",
        _type(field.annotation),
        _default(field.get_default(call_default_factory=True)),
        field.description,
    ]
    return "| " + " | ".join(_cell(cell or "") for cell in cells) + " |"


def _cell(text: str) -> str:
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def _default(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str | tuple | list) and not value:
        return "empty"
    if isinstance(value, tuple | list):
        return ", ".join(_default(item) for item in value)
    return f"`{value}`"


def _type(annotation: Any) -> str:
    """An annotation in words: choices by name, optional values with "or none"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin in {Union, UnionType}:
        return " or ".join(_type(argument) for argument in arguments)
    if origin in {tuple, list}:
        return "list of " + _type(arguments[0])
    choices = arguments if origin is Literal else ()
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        choices = tuple(choice.value for choice in annotation)
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    words = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", NoneType: "none"}
    return words.get(annotation, getattr(annotation, "__name__", str(annotation)))
