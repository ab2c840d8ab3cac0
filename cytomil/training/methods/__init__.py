"""The pretraining methods, loaded by name. `cytomil.registry` lists them, and docs/methods.md shows how to add one."""

from cytomil.training.methods.base import Batch, Method, load_method, require_consent

__all__ = ["Batch", "Method", "load_method", "require_consent"]
