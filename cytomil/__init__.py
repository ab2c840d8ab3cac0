"""cytomil finds the diseased slide and its few abnormal cells, and learns from slide labels alone.

`import cytomil` loads nothing heavy; each name below is loaded when it is first used. docs/how-to/python.md shows how they
work together.
"""

from importlib import metadata

import lazy_loader

try:
    __version__ = metadata.version("cytomil")
except metadata.PackageNotFoundError:  # run from a folder that was never installed
    __version__ = "0+unknown"

# The names and where they come from are in __init__.pyi.
__getattr__, _names, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]


def __dir__() -> list[str]:
    return sorted(__all__)
