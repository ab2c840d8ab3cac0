"""torch.compile: PyTorch's own compiler. Every process compiles again, or finds the code in PyTorch's cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cytomil.encoders.engines.engine import Backend, CompiledForm, Embed, batch_of, padded, to_unit_range
from cytomil.layer import Layer

_GPU_BATCH = 256  # enough to fill a GPU


class TorchCompile(Backend):
    """Inductor's code for one fixed batch size. On a processor it needs a C++ compiler."""

    precisions = ("float32",)
    devices = ("cpu", "cuda")
    must_be_faster = True

    @classmethod
    def stored_name(cls, name: str, precision: str) -> str:
        """The name without the precision, because there is only one."""
        return name

    def build(self, form: CompiledForm, calibration: np.ndarray) -> dict[str, Any]:
        """Do nothing, because the code is not stored."""
        return {}

    def start(self, form: CompiledForm, layer: Layer) -> Embed:
        """Compile now, so that a failure is reported at the start."""
        device, dim = form.device, form.dim(layer)
        batch = batch_of(form.image_size) if device.type == "cpu" else _GPU_BATCH
        network = form.network(layer).to(device).to(memory_format=torch.channels_last)
        compiled = torch.compile(network, options={"freezing": True})

        @torch.no_grad()
        def embed(pixels: np.ndarray) -> np.ndarray:
            out = np.empty((len(pixels), dim), np.float32)
            for start in range(0, len(pixels), batch):
                values = compiled(to_unit_range(padded(pixels, start, batch), device))[0]
                out[start : start + batch] = values.float().cpu().numpy()[: len(pixels) - start]
            return out

        embed(np.zeros((1, form.image_size, form.image_size, 3), np.uint8))
        return embed
