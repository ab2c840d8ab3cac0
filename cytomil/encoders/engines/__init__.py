"""The engines that run an encoder, behind one interface: `open_engine` gives an `Engine`."""

from cytomil.encoders.engines.engine import Engine
from cytomil.encoders.engines.select import open_engine

__all__ = ["Engine", "open_engine"]
