"""From a method's name to its class, and what must be true before it may train."""

from __future__ import annotations

from cytomil.errors import SettingsError
from cytomil.pretrain.config import PretrainConfig
from cytomil.pretrain.methods.base import Method
from cytomil.registry import METHODS


def load_method(name: str) -> type[Method]:
    """The class of a method. Raises `SettingsError` for a name nobody has, or one whose package does not load."""
    return METHODS.load(name, Method)


def require_consent(method: type[Method], settings: PretrainConfig) -> None:
    """Refuse settings that ask of a method what it does not do.

    Raises `SettingsError` where instance labels are read without ``with_instance_labels``, or it is given in
    vain; or stages are frozen that have only random weights.
    """
    name = settings.method
    if method.uses_instance_labels and not settings.with_instance_labels:
        raise SettingsError(
            f"method '{name}' reads instance labels. It is a ceiling to compare with, not a way to learn from slide "
            "labels; if that is what you want, add --with-instance-labels."
        )
    if settings.with_instance_labels and not method.uses_instance_labels:
        raise SettingsError(f"method '{name}' learns from slide labels alone. Leave out --with-instance-labels.")
    if settings.frozen_stages and settings.weights == "none":
        raise SettingsError(
            f"--frozen-stages {settings.frozen_stages} would keep random weights as they are. Name --weights, or leave it out."
        )
