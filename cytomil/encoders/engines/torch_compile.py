"""torch.compile: PyTorch's own compiler. Its code is made anew (or found in PyTorch's cache) in every process, not stored."""

from __future__ import annotations

import numpy as np
import torch

from cytomil.encoders.architecture import Encoder
from cytomil.encoders.engines.eager import to_unit_range
from cytomil.encoders.engines.engine import batch_of, padded
from cytomil.encoders.stages import Layers, layer_dim
from cytomil.layer import Layer

LIBRARIES = ("torch",)
PRECISIONS = ("float32",)
_CELLS_ON_A_GPU = 256  # what fills one; on a processor its cache is the limit


class TorchCompileEngine:
    """Runs the encoder as compiled by inductor, one fixed batch size at a time. Needs a C++ compiler on a processor."""

    def __init__(
        self, name: str, key: str, encoder: Encoder, image_size: int, layer: Layer, device: torch.device
    ) -> None:
        self.name, self.key = name, key
        self.layer = layer
        self.dim = layer_dim(encoder, layer)
        self._device = device
        self._batch = batch_of(image_size) if device.type == "cpu" else _CELLS_ON_A_GPU
        module = Layers(encoder, (layer,)).to(device).to(memory_format=torch.channels_last).eval()
        self._module = torch.compile(module, options={"freezing": True})
        self.embed(np.zeros((1, image_size, image_size, 3), np.uint8))  # compiles here, where a failure can be told

    @torch.no_grad()
    def embed(self, pixels: np.ndarray) -> np.ndarray:
        """Decoded cells, uint8 (N, S, S, 3) → float32 (N, dim)."""
        out = np.empty((len(pixels), self.dim), np.float32)
        for start in range(0, len(pixels), self._batch):
            values = self._module(to_unit_range(padded(pixels, start, self._batch), self._device))[0]
            out[start : start + self._batch] = values.float().cpu().numpy()[: len(pixels) - start]
        return out
