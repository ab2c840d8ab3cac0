"""The engines that run an encoder, behind one interface."""

import lazy_loader

# The names and where they come from stand in __init__.pyi.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
