"""OpenVINO: the encoder compiled for this processor, in float32, bfloat16, or 8-bit integers calibrated on real cells."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from pydantic import Field

from cytomil.config import Config
from cytomil.encoders.engines.engine import Backend, CompiledForm, Embed, batch_of, padded
from cytomil.layer import Layer

MODEL_NAME = "encoder.xml"
# Layers without 8-bit integers stay in float32, because bfloat16 would add its own error.
_HINTS = {"float32": "f32", "bf16": "bf16", "int8": "f32"}


@cache
def _core() -> Any:
    """OpenVINO's entry point, one per process.

    Each sets the thread's alternate signal stack. When two are released in the order of their creation, the second one
    restores the first one's freed stack, and the next Ctrl-C ends the process with a segmentation fault.
    """
    import openvino

    return openvino.Core()


class OpenVinoConfig(Config):
    """Settings of OpenVINO."""

    calibration_cells: int = Field(300, ge=40, description="number of training cells that calibrate int8")


class OpenVino(Backend):
    """A graph that OpenVINO compiles for the processor on which it runs."""

    Config = OpenVinoConfig
    precisions = ("float32", "bf16", "int8")
    libraries = ("openvino",)

    def auto_precisions(self) -> Sequence[str]:
        """bfloat16 first, if the processor supports it."""
        return ("bf16", "float32") if has_bf16() else ("float32",)

    def calibration_cells(self, precision: str) -> int:
        """The setting ``calibration_cells`` for int8, otherwise 0."""
        return self.own.calibration_cells if precision == "int8" else 0

    def why_not_build(self, precision: str) -> str:
        """int8 also needs nncf."""
        if precision == "int8" and find_spec("nncf") is None:
            return "int8 is calibrated with nncf, which is not installed; pip install 'cytomil[int8]'"
        return super().why_not_build(precision)

    def why_not_run(self, precision: str) -> str:
        """OpenVINO emulates bfloat16 on a processor without it, which is slower."""
        return "this processor has no bfloat16" if precision == "bf16" and not has_bf16() else ""

    def is_portable(self, precision: str) -> bool:
        """False for int8, whose ranges suit only the processor they were chosen for. Other graphs are compiled when loaded."""
        return precision != "int8"

    def build(self, form: CompiledForm, calibration: np.ndarray) -> dict[str, Any]:
        """Convert the encoder. The stored graph takes decoded cells, uint8 (N, S, S, 3), and returns the form's layers."""
        import openvino as ov
        from openvino.preprocess import PrePostProcessor

        size = form.image_size
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer warns about intended constants
            example = torch.zeros(2, 3, size, size)
            model = ov.convert_model(form.network(), example_input=example, input=[-1, 3, size, size])
        steps = PrePostProcessor(model)
        steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
        steps.input().model().set_layout(ov.Layout("NCHW"))
        steps.input().preprocess().convert_element_type(ov.Type.f32).scale(255.0)
        model = steps.build()
        metadata: dict[str, Any] = {}
        if form.precision == "int8":
            model = _quantize(model, calibration)
            metadata = {
                "calibration": {
                    "cells": len(calibration),
                    "from": "training bags",
                    "method": "nncf, mixed, full range, bias corrected",
                }
            }
        ov.save_model(model, form.folder / MODEL_NAME, compress_to_fp16=False)
        return metadata

    def start(self, form: CompiledForm, layer: Layer) -> Embed:
        """Compile the stored graph for as many threads as PyTorch has, with a batch on each."""
        import openvino as ov

        batch, dim, output = batch_of(form.image_size), form.dim(layer), form.output(layer)
        core = _core()
        model = core.read_model(form.folder / MODEL_NAME)
        model.reshape([batch, form.image_size, form.image_size, 3])
        options = {
            # Two streams with one core each were faster than one with two, and lose less if other work needs a core.
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": _HINTS[form.precision],
            # OMP_NUM_THREADS and Ray's workers limit the number of PyTorch's threads.
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,
        }
        queue = ov.AsyncInferQueue(core.compile_model(model, "CPU", options))

        def embed(pixels: np.ndarray) -> np.ndarray:
            out = np.empty((len(pixels), dim), np.float32)

            def keep(request: Any, start: int) -> None:
                out[start : start + batch] = request.get_output_tensor(output).data[: len(pixels) - start]

            queue.set_callback(keep)
            for start in range(0, len(pixels), batch):
                queue.start_async({0: padded(pixels, start, batch)}, start)
            queue.wait_all()
            return out

        return embed


def _quantize(model: Any, calibration: np.ndarray) -> Any:
    import contextlib
    import io
    import logging

    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    # nncf refuses to ignore a layer type that is missing. There is no projector if only inner stages are computed.
    has_projector = any(step.get_type_name() == "MatMul" for step in model.get_ops())
    logging.getLogger("nncf").setLevel(logging.ERROR)  # otherwise its hints disturb the progress display
    # nncf cannot switch off its progress bars, which it writes to standard output.
    with contextlib.redirect_stdout(io.StringIO()):
        return nncf.quantize(
            model,
            nncf.Dataset([calibration[i : i + 1] for i in range(len(calibration))]),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(calibration),
            fast_bias_correction=False,
            # Compared with the convolutions the projector takes almost no time, and it loses the most accuracy.
            ignored_scope=nncf.IgnoredScope(types=["MatMul"]) if has_projector else None,
            advanced_parameters=AdvancedQuantizationParameters(
                # The default range is the mean of single cells' extremes. It would clip the rarest cells, which matter most.
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
                # Sums of 8-bit products overflow only on processors without a unit for them. The fix costs one bit.
                overflow_fix=OverflowFix.DISABLE if _sums_8_bit_products() else OverflowFix.FIRST_LAYER,
            ),
        )


def has_bf16() -> bool:
    """Whether this processor multiplies in bfloat16. OpenVINO emulates it on others, which is slower."""
    units = torch.cpu.get_capabilities()
    return any(units.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def _sums_8_bit_products() -> bool:
    units = torch.cpu.get_capabilities()
    return any(units.get(name, False) for name in ("avx512_vnni", "avx_vnni"))
