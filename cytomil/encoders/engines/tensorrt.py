"""TensorRT, by torch-tensorrt 2.14: the encoder compiled for one model of NVIDIA GPU. It has never been run on one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cytomil.encoders.engines.engine import Backend, CompiledForm, Embed
from cytomil.errors import EngineError
from cytomil.layer import Layer

MODEL_NAME = "encoder.ep"
MAX_CELLS = 256
_DTYPES = {"fp16": torch.float16, "float32": torch.float32}


class TensorRt(Backend):
    """A module for the model of GPU that it was compiled on, and for batches of 1 to 256 cells."""

    precisions = ("fp16", "float32")
    devices = ("cuda",)
    libraries = ("torch-tensorrt", "torch")
    install = "'cytomil[tensorrt]'"
    caveat = "cytomil's TensorRT engine has never been run on a GPU"

    def build(self, form: CompiledForm, calibration: np.ndarray) -> dict[str, Any]:
        """Compile the encoder and write it into the form's folder."""
        import torch_tensorrt

        dtype = _DTYPES[form.precision]
        # The precision is that of the weights. `enabled_precisions` would have no effect and leave float32.
        module = form.network().to(device=form.device, dtype=dtype)
        cell = (3, form.image_size, form.image_size)
        inputs = [
            torch_tensorrt.Input(
                min_shape=(1, *cell), opt_shape=(MAX_CELLS // 2, *cell), max_shape=(MAX_CELLS, *cell), dtype=dtype
            )
        ]
        compiled = torch_tensorrt.compile(module, ir="dynamo", arg_inputs=inputs)
        torch_tensorrt.save(compiled, str(form.folder / MODEL_NAME), arg_inputs=inputs)
        return {"most_cells": MAX_CELLS}

    def start(self, form: CompiledForm, layer: Layer) -> Embed:
        """Load the stored module. Embedding raises `EngineError` if it computes in another precision."""
        import torch_tensorrt

        device, dtype, dim, output = form.device, _DTYPES[form.precision], form.dim(layer), form.output(layer)
        module = torch_tensorrt.load(str(form.folder / MODEL_NAME)).module()

        @torch.inference_mode()
        def embed(pixels: np.ndarray) -> np.ndarray:
            out = np.empty((len(pixels), dim), np.float32)
            for start in range(0, len(pixels), MAX_CELLS):
                # Pixels are transferred as bytes, a quarter of their size in float32.
                cells = torch.as_tensor(pixels[start : start + MAX_CELLS]).to(device).permute(0, 3, 1, 2)
                values: torch.Tensor = module(cells.to(dtype).contiguous().div_(255))[output]
                if values.dtype != dtype:
                    raise EngineError(f"{form.name} computes in {values.dtype}, not in {dtype} as it was compiled for.")
                out[start : start + MAX_CELLS] = values.float().cpu().numpy()
            return out

        return embed
