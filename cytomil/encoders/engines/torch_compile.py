"""torch.compile: PyTorch's own compiler. Every process makes its code anew, or finds it in PyTorch's cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cytomil.encoders.engines.eager import to_unit_range
from cytomil.encoders.engines.engine import Backend, CompiledForm, Embed, batch_of, padded
from cytomil.layer import Layer

_CELLS_ON_A_GPU = 256  # what fills one; on a processor its cache is the limit


class TorchCompile(Backend):
    """Inductor's code, for one fixed batch size at a time. A processor needs a C++ compiler for it."""

    precisions = ("float32",)
    devices = ("cpu", "cuda")
    must_be_faster = True

    @classmethod
    def stored_name(cls, name: str, precision: str) -> str:
        """The name without the precision, because it has only one."""
        return name

    def build(self, form: CompiledForm, calibration: np.ndarray) -> dict[str, Any]:
        """Nothing: the code is not stored."""
        return {}

    def start(self, form: CompiledForm, layer: Layer) -> Embed:
        """Compile here, where a failure can be reported."""
        device, dim = form.device, form.dim(layer)
        batch = batch_of(form.image_size) if device.type == "cpu" else _CELLS_ON_A_GPU
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
