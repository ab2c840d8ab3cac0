"""cytomil: finds the diseased slide, and in it the few cells that say so, from slide labels alone.

`import cytomil` loads nothing heavy; each name below is loaded when it is first used. docs/how-to/python.md shows how they
work together.
"""

import sys
from importlib import import_module
from types import ModuleType

import lazy_loader

__version__ = "0.1.0"

_PACKAGES_AND_FUNCTIONS = ("evaluate", "pretrain")

# The names and where they come from are in __init__.pyi.
_load, _names, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]


def __getattr__(name):  # type: ignore[no-untyped-def]
    return import_module(f"{__name__}.{name}") if name in _PACKAGES_AND_FUNCTIONS else _load(name)


def __dir__():  # type: ignore[no-untyped-def]
    return sorted(__all__)


class _CallablePackage(ModuleType):
    """A package that calls the function of its name in `cytomil.api.stages`.

    The import system overwrites `cytomil.pretrain` with the package of that name whenever one of its modules is imported.
    So the package itself must be callable.
    """

    def _function(self):  # type: ignore[no-untyped-def]
        return getattr(import_module("cytomil.api.stages"), self.__name__.rpartition(".")[2])

    def __call__(self, *args, **settings):  # type: ignore[no-untyped-def]
        return self._function()(*args, **settings)

    # What editors and help() show.
    __signature__ = property(lambda self: import_module("inspect").signature(self._function()))
    __doc__ = property(lambda self: self._function().__doc__)


class _Cytomil(ModuleType):
    """The type of `cytomil` itself: it makes the packages callable that are functions too."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _PACKAGES_AND_FUNCTIONS and isinstance(value, ModuleType):
            value.__class__ = _CallablePackage
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Cytomil
