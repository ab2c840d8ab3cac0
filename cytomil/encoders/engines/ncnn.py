"""ncnn: the encoder for this processor in float32. Winograd's algorithm saves multiplications in 3×3 convolutions."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cytomil.encoders.engines.engine import Backend, CompiledForm, Embed
from cytomil.errors import EngineError
from cytomil.layer import Layer
from cytomil.threads import usable_cores

if TYPE_CHECKING:
    import ncnn

GRAPH_NAME, WEIGHTS_NAME = "encoder.param", "encoder.bin"


class Ncnn(Backend):
    """A graph that takes one cell at a time and runs in several threads."""

    precisions = ("float32",)
    libraries = ("ncnn", "pnnx")
    install = "'cytomil[ncnn]'"

    def build(self, form: CompiledForm, calibration: np.ndarray) -> dict[str, Any]:
        """Convert the encoder with pnnx. The stored graph takes one cell in 0 to 1 and returns the form's layers.

        Raises:
            EngineError: pnnx cannot convert the network, or ncnn cannot run it.
        """
        import pnnx

        size, architecture = form.image_size, form.encoder.architecture.name
        with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer warns about intended constants
            traced = torch.jit.trace(form.network(), torch.zeros(1, 3, size, size), check_trace=False)
            traced.save(str(Path(scratch) / "encoder.pt"))
            line = (pnnx.EXEC_PATH, "encoder.pt", f"inputshape=[1,3,{size},{size}]", "fp16=0")
            done = subprocess.run(line, cwd=scratch, capture_output=True, text=True, check=False)
            made = [Path(scratch) / name for name in ("encoder.ncnn.param", "encoder.ncnn.bin")]
            if done.returncode or not all(path.is_file() for path in made):
                raise EngineError(f"pnnx cannot convert {architecture} for ncnn. Use --engine openvino.")
            for path, name in zip(made, (GRAPH_NAME, WEIGHTS_NAME), strict=True):
                shutil.copyfile(path, form.folder / name)
        try:
            _load(form.folder)
        except EngineError:
            raise EngineError(f"ncnn cannot run {architecture}. Use --engine openvino.") from None
        return {}

    def start(self, form: CompiledForm, layer: Layer) -> Embed:
        """Load the stored graph."""
        return _CellByCell(form.folder, form.dim(layer), form.output(layer))


def _load(folder: Path) -> ncnn.Net:
    import ncnn

    net = ncnn.Net()
    options = net.opt
    options.num_threads = 1
    # On by default if the processor supports them, but they are not float32.
    options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
    options.use_bf16_storage = False
    if net.load_param(str(folder / GRAPH_NAME)) or net.load_model(str(folder / WEIGHTS_NAME)):
        raise EngineError("ncnn cannot load its files")
    return net


class _CellByCell:
    """Runs a stored graph on one cell per core in parallel."""

    def __init__(self, folder: Path, dim: int, output: int) -> None:
        self._dim = dim
        self._net = _load(folder)
        self._input = self._net.input_names()[0]
        self._output = self._net.output_names()[output]
        self._pool = ThreadPoolExecutor(usable_cores())

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        out = np.empty((len(pixels), self._dim), np.float32)
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
