"""The eager engine: PyTorch runs the encoder uncompiled, channels-last, on any device."""

from __future__ import annotations

import numpy as np
import torch

from cytomil.encoders.architecture import Encoder
from cytomil.encoders.engines.engine import cache_sized_batch
from cytomil.encoders.stages import Layers, layer_dim
from cytomil.layer import Layer
from cytomil.threads import keep_freed_memory


class EagerEngine:
    """Runs an encoder on blocks of decoded cells and returns the chosen layer.

    On a processor it calls `keep_freed_memory`, which affects the whole process.
    """

    def __init__(self, encoder: Encoder, layer: Layer, device: torch.device) -> None:
        self.dim = layer_dim(encoder, layer)
        self._module = Layers(encoder, (layer,)).to(device).to(memory_format=torch.channels_last).eval()
        self.name = self.key = "eager"
        self.layer = layer
        self._device = device
        if device.type == "cpu":
            keep_freed_memory()

    @torch.inference_mode()
    def embed(self, pixels: np.ndarray) -> np.ndarray:
        """Decoded cells, uint8 (N, S, S, 3) → float32 (N, dim)."""
        if len(pixels) == 0:
            return np.zeros((0, self.dim), np.float32)
        n = cache_sized_batch(pixels.shape[1]) if self._device.type == "cpu" else len(pixels)
        parts = [self._module(to_unit_range(pixels[i : i + n], self._device))[0] for i in range(0, len(pixels), n)]
        return torch.cat(parts).float().cpu().numpy()


def to_unit_range(pixels: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 (N, S, S, 3) → float32 (N, 3, S, S) in 0 to 1, channels-last in memory."""
    return torch.as_tensor(pixels).to(device).permute(0, 3, 1, 2).float().div_(255)
