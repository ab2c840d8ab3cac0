"""ncnn: the encoder for this processor in float32, its 3×3 convolutions by Winograd's algorithm, which multiplies less."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cytomil.encoders.architecture import Encoder
from cytomil.encoders.stages import Layers
from cytomil.errors import EngineError
from cytomil.layer import Layer
from cytomil.threads import usable_cores

if TYPE_CHECKING:
    import ncnn

LIBRARIES = ("ncnn", "pnnx")
PRECISIONS = ("float32",)
GRAPH_NAME, WEIGHTS_NAME = "encoder.param", "encoder.bin"


def build(encoder: Encoder, layers: Sequence[Layer], image_size: int, folder: Path) -> dict[str, Any]:
    """Convert ``encoder`` by pnnx and write it into ``folder``; returns facts for its record, of which there are none.

    The stored graph takes one cell, 0 to 1, and gives ``layers``. Raises `EngineError` for a network that
    pnnx cannot convert or ncnn cannot run.
    """
    import pnnx

    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, of constants that are meant to be constant
        traced = torch.jit.trace(
            Layers(encoder, layers).eval(), torch.zeros(1, 3, image_size, image_size), check_trace=False
        )
        traced.save(str(Path(scratch) / "encoder.pt"))
        line = (pnnx.EXEC_PATH, "encoder.pt", f"inputshape=[1,3,{image_size},{image_size}]", "fp16=0")
        done = subprocess.run(line, cwd=scratch, capture_output=True, text=True, check=False)
        made = [Path(scratch) / name for name in ("encoder.ncnn.param", "encoder.ncnn.bin")]
        if done.returncode or not all(path.is_file() for path in made):
            raise EngineError(f"pnnx cannot convert {encoder.architecture.name} for ncnn. Use --engine openvino.")
        for path, name in zip(made, (GRAPH_NAME, WEIGHTS_NAME), strict=True):
            shutil.copyfile(path, folder / name)
    try:
        _load(folder)
    except EngineError:
        raise EngineError(f"ncnn cannot run {encoder.architecture.name}. Use --engine openvino.") from None
    return {}


def _load(folder: Path) -> ncnn.Net:
    import ncnn

    net = ncnn.Net()
    options = net.opt
    options.num_threads = 1
    # On by default where the processor has them; they are not float32.
    options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
    options.use_bf16_storage = False
    if net.load_param(str(folder / GRAPH_NAME)) or net.load_model(str(folder / WEIGHTS_NAME)):
        raise EngineError("ncnn cannot load its files")
    return net


class NcnnEngine:
    """Runs a stored graph cell by cell, on as many cells at a time as this process may use cores."""

    def __init__(self, name: str, key: str, folder: Path, layer: Layer, dim: int, output: int) -> None:
        self.name, self.key = name, key
        self.layer, self.dim = layer, dim
        self._net = _load(folder)
        self._input = self._net.input_names()[0]
        self._output = self._net.output_names()[output]
        self._pool = ThreadPoolExecutor(usable_cores())

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        """Decoded cells, uint8 (N, S, S, 3) → float32 (N, dim)."""
        out = np.empty((len(pixels), self.dim), np.float32)
        for _ in self._pool.map(partial(self._embed_one, np.ascontiguousarray(pixels), out), range(len(pixels))):
            pass
        return out

    def _embed_one(self, pixels: np.ndarray, out: np.ndarray, number: int) -> None:
        import ncnn

        cell = pixels[number]
        image = ncnn.Mat.from_pixels(cell, ncnn.Mat.PixelType.PIXEL_RGB, cell.shape[1], cell.shape[0])
        image.substract_mean_normalize([], [1 / 255] * 3)
        run = self._net.create_extractor()
        run.input(self._input, image)
        status, values = run.extract(self._output)
        if status:
            raise EngineError(f"ncnn could not embed a cell (status {status})")
        out[number] = np.array(values).ravel()
