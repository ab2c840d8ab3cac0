"""Cards: the JSON files beside an artefact that describe it and how it was made.

A key that this version does not know is ignored. A copy of the card keeps it, unless it is in a value object such as
`Cutting`.
"""

from __future__ import annotations

import hashlib
import json
import platform
import reprlib
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, Strict, ValidationError

from cytomil import __version__
from cytomil.errors import CytomilError
from cytomil.files import read_json_card

_RECORDED_LIBRARIES = (
    "torch",
    "torchvision",
    "numpy",
    "scikit-learn",
    "scikit-image",
    "opencv-python-headless",
    "h5py",
    "pillow",
)


@cache
def code_fingerprint(*packages: str) -> str:
    """SHA-256 over the package's own source, so that an artefact names its code outside a git repository too.

    With ``packages``, sub-packages such as "encoders", only their source counts. It changes with any comment. What is kept
    for a later run is therefore keyed by an explicit version instead, such as `cytomil.training.checkpoint.TRAINING_VERSION`.
    """
    root = Path(__file__).parent
    digest = hashlib.sha256()
    folders = [root / package for package in packages] or [root]
    for source in sorted(file for folder in folders for file in folder.rglob("*.py")):
        digest.update(source.relative_to(root).as_posix().encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()


def versions(*more: str) -> dict[str, str]:
    """Versions of cytomil, Python and the libraries that affect a result, ``more`` included."""
    found = {"cytomil": __version__, "code": code_fingerprint()[:12], "python": platform.python_version()}
    return found | library_versions(*_RECORDED_LIBRARIES, *more)


@cache
def library_versions(*names: str) -> dict[str, str]:
    """The installed version of each of these libraries, by name; "not installed" for an extra that is missing."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def now() -> str:
    """The moment in UTC, to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


_PLAINER = dict.fromkeys(("model_type", "dataclass_type", "dict_type"), "input should be an object")
_PLAINER["tuple_type"] = "input should be a list"
_LARGEST = 1e300  # larger numbers could make sums and products infinite


class Card(BaseModel):
    """Base of all cards and of the objects in them. A field of the wrong type or range raises `pydantic.ValidationError`."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    def to_json(self) -> dict[str, Any]:
        """The card as plain JSON types, with the keys that were given and no others."""
        document = json.loads(json.dumps(self.model_dump(exclude_unset=True), allow_nan=False))
        schema = {"schema": document.pop("schema")} if "schema" in document else {}
        return schema | document


C = TypeVar("C", bound=Card)


def read_card(path: Path, kind: type[C], schema: str, error: type[CytomilError], made_by: str) -> C:
    """Read a sealed card.

    Args:
        path: the JSON file.
        kind: what the card holds.
        schema: the value that its key ``schema`` must have.
        error: raised, with one line that names the file, if the card is missing, damaged, altered, of another schema,
            or has a wrong field.
        made_by: the command that makes such a card.
    """
    document = read_json_card(path, schema, error, made_by)
    return as_card(document, kind, str(path), error, f"Make it again with `{made_by}`.")


def as_card(document: Any, kind: type[C], where: str, error: type[CytomilError], cure: str) -> C:
    """The card that a JSON document holds.

    Raises ``error`` with one line if a field is missing or wrong. ``where`` begins the line and ``cure`` ends it.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
    except CytomilError as problem:  # raised by a value object in the card
        raise error(f"{where}: {problem} {cure}") from None
    field = ".".join(str(part)[:60] for part in first["loc"])
    if first["type"] == "missing":
        raise error(f"{where} lacks {field}. {cure}")
    reason = _PLAINER.get(first["type"], first["msg"].removeprefix("Value error, "))
    if first["type"] == "value_error" and isinstance(first["input"], dict):  # several fields that do not fit together
        shown = field
    else:
        shown = f"{field or 'it'} is {reprlib.repr(first['input'])}"
    raise error(f"{where}: {shown}{': ' if shown else ''}{reason[0].lower()}{reason[1:]}. {cure}")


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("input should be a number")
    if not -_LARGEST <= value <= _LARGEST:
        raise ValueError("input should be a finite number")
    return value


Number = Annotated[float, PlainValidator(_number)]
"""A finite number. A whole number stays an int, so that a copy of the card has the same bytes."""
Fraction = Annotated[float, PlainValidator(_number), Field(ge=0, le=1)]
"""A number from 0 to 1."""
Count = Annotated[int, Strict(), Field(ge=0, le=2**62)]
"""A whole number that is not negative."""
Flag = Annotated[bool, Strict()]
Text = Annotated[str, Strict()]
