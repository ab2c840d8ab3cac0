"""The engines that run an encoder, behind one interface: `open_engine` gives one, `open_same_engine` another process's."""

from cytomil.encoders.engines.engine import Engine
from cytomil.encoders.engines.select import open_engine, open_same_engine

__all__ = ["Engine", "open_engine", "open_same_engine"]
