"""What a check says of one file, and checks that several kinds of folders share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cytomil.errors import CytomilError, why_unreadable
from cytomil.files import SEAL, is_sealed, json_text, read_json

T = TypeVar("T")


@dataclass(frozen=True)
class Checked:
    """A file, and what is wrong with it and what to do, as the end of a sentence; "" if nothing is."""

    file: Path
    fault: str = ""


def attempt(file: Path, read: Callable[[], T]) -> tuple[T | None, Checked]:
    """Read with a reader of cytomil's; its refusal is the fault of ``file``."""
    try:
        return read(), Checked(file)
    except CytomilError as error:
        return None, Checked(file, str(error).removeprefix(f"{file}: ").removeprefix(f"{file} "))
    except OSError as error:
        return None, Checked(file, why_unreadable(file, error))


def sealed_json(file: Path, made_by: str) -> Checked:
    """Whether a sealed JSON file is as it was written, to the byte."""
    again = f"Make it again with `{made_by}`."
    try:
        document = read_json(file)
        same = is_sealed(document) and json_text(document) == file.read_text(encoding="utf-8")
    except OSError as error:
        return Checked(file, why_unreadable(file, error))
    except ValueError as error:
        return Checked(file, f"is damaged ({str(error)[:200]}). {again}")
    return Checked(file, "" if same else f"was altered or damaged: its checksum does not match. {again}")


def has_seal(file: Path, beside: str) -> bool:
    """Whether a version that seals this JSON file wrote it. Such a file also has the key ``beside``."""
    try:
        document = read_json(file)
    except (OSError, ValueError):
        return True
    return not isinstance(document, dict) or SEAL in document or beside in document


def as_written(file: Path, text: str, made_by: str) -> Iterator[Checked]:
    """Whether a table is the ``text`` that its own rows make, to the byte."""
    if file.read_text(encoding="utf-8") != text:
        yield Checked(file, f"was edited or damaged. Make it again with `{made_by}`.")
    else:
        yield Checked(file)
