"""What every configuration has in common: frozen pydantic models that refuse a key they do not know."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic_settings import NoDecode


class Config(BaseModel):
    """Base of all configurations. An unknown key, a value out of range, infinity and NaN raise `pydantic.ValidationError`."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def _split_names(value: Any) -> Any:
    return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_names)]
"""Several names; a string is split at its commas."""
