"""TensorRT, by torch-tensorrt 2.14: the encoder compiled for one kind of NVIDIA GPU. Not yet run on one: see the README."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cytomil.encoders.architecture import Encoder
from cytomil.encoders.stages import Layers
from cytomil.errors import EngineError
from cytomil.layer import Layer

LIBRARIES = ("torch-tensorrt", "torch")
PRECISIONS = ("fp16", "float32")
MODEL_NAME = "encoder.ep"
MOST_CELLS = 256
_DTYPES = {"fp16": torch.float16, "float32": torch.float32}


def build(
    encoder: Encoder, layers: Sequence[Layer], image_size: int, precision: str, folder: Path, device: torch.device
) -> dict[str, Any]:
    """Compile ``encoder`` for 1 to 256 cells at a time and write it into ``folder``; returns facts for its record."""
    import torch_tensorrt

    dtype = _DTYPES[precision]
    # The precision is the model's own: `enabled_precisions` is swallowed without effect and leaves float32.
    module = Layers(encoder, layers).to(device=device, dtype=dtype).eval()
    cell = (3, image_size, image_size)
    inputs = [
        torch_tensorrt.Input(
            min_shape=(1, *cell), opt_shape=(MOST_CELLS // 2, *cell), max_shape=(MOST_CELLS, *cell), dtype=dtype
        )
    ]
    compiled = torch_tensorrt.compile(module, ir="dynamo", arg_inputs=inputs)
    torch_tensorrt.save(compiled, str(folder / MODEL_NAME), arg_inputs=inputs)
    return {"most_cells": MOST_CELLS}


class TensorRtEngine:
    """Runs a stored module on the GPU it was compiled for."""

    def __init__(
        self,
        name: str,
        key: str,
        folder: Path,
        precision: str,
        layer: Layer,
        dim: int,
        output: int,
        device: torch.device,
    ) -> None:
        import torch_tensorrt

        self.name, self.key = name, key
        self.layer = layer
        self.dim, self._output = dim, output
        self._device, self._dtype = device, _DTYPES[precision]
        self._module = torch_tensorrt.load(str(folder / MODEL_NAME)).module()

    @torch.inference_mode()
    def embed(self, pixels: np.ndarray) -> np.ndarray:
        """Decoded cells, uint8 (N, S, S, 3) → float32 (N, dim). Raises `EngineError` where the precision is another."""
        out = np.empty((len(pixels), self.dim), np.float32)
        for start in range(0, len(pixels), MOST_CELLS):
            # Bytes cross to the GPU as bytes, a quarter of what float32 would take, and become numbers there.
            cells = torch.as_tensor(pixels[start : start + MOST_CELLS]).to(self._device).permute(0, 3, 1, 2)
            values: torch.Tensor = self._module(cells.to(self._dtype).contiguous().div_(255))[self._output]
            if values.dtype != self._dtype:
                raise EngineError(
                    f"{self.name} computes in {values.dtype}, not in {self._dtype} as it was compiled for."
                )
            out[start : start + MOST_CELLS] = values.float().cpu().numpy()
        return out
