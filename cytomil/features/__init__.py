"""Embed bags through an encoder into feature caches."""

from cytomil.features.cache import Features, open_features

__all__ = ["Features", "open_features"]
