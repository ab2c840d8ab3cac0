"""Morphological descriptors of cells: size, shape, colour and texture of nucleus and cytoplasm."""
