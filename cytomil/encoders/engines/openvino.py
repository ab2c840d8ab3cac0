"""OpenVINO: the encoder compiled for this processor, in float32, bfloat16, or 8-bit integers calibrated on real cells."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cytomil.encoders.architecture import Encoder
from cytomil.encoders.engines.engine import batch_of, padded
from cytomil.encoders.stages import Layers
from cytomil.layer import Layer

LIBRARIES = ("openvino",)
PRECISIONS = ("float32", "bf16", "int8")
MODEL_NAME = "encoder.xml"
# What is not in 8-bit integers is left in float32: bfloat16 would add its own error to the integers'.
_HINTS = {"float32": "f32", "bf16": "bf16", "int8": "f32"}


def build(
    encoder: Encoder,
    layers: Sequence[Layer],
    image_size: int,
    precision: str,
    calibration: np.ndarray,
    folder: Path,
) -> dict[str, Any]:
    """Convert ``encoder`` and write it into ``folder``; returns facts for its record.

    The stored graph takes cells as they are decoded, uint8 (N, S, S, 3), and gives ``layers``.
    ``calibration``, uint8 (M, S, S, 3), is looked at for int8 alone.
    """
    import openvino as ov
    from openvino.preprocess import PrePostProcessor

    example = torch.zeros(2, 3, image_size, image_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, of constants that are meant to be constant
        model = ov.convert_model(
            Layers(encoder, layers).eval(), example_input=example, input=[-1, 3, image_size, image_size]
        )
    steps = PrePostProcessor(model)
    steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    steps.input().model().set_layout(ov.Layout("NCHW"))
    steps.input().preprocess().convert_element_type(ov.Type.f32).scale(255.0)
    model = steps.build()
    facts: dict[str, Any] = {}
    if precision == "int8":
        model = _quantize(model, calibration)
        facts = {
            "calibration": {
                "cells": len(calibration),
                "from": "training bags",
                "method": "nncf, mixed, full range, bias corrected",
            }
        }
    ov.save_model(model, folder / MODEL_NAME, compress_to_fp16=False)
    return facts


def _quantize(model: Any, calibration: np.ndarray) -> Any:
    import contextlib
    import io
    import logging

    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    # nncf refuses to leave out what is not there, as the projector where only inner stages are asked for.
    has_projector = any(step.get_type_name() == "MatMul" for step in model.get_ops())
    logging.getLogger("nncf").setLevel(logging.ERROR)  # else its advice runs through our progress
    # nncf has no switch for its bars; they go to whatever standard output is at the time.
    with contextlib.redirect_stdout(io.StringIO()):
        return nncf.quantize(
            model,
            nncf.Dataset([calibration[i : i + 1] for i in range(len(calibration))]),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(calibration),
            fast_bias_correction=False,
            # The projector costs next to nothing beside the convolutions and loses the most.
            ignored_scope=nncf.IgnoredScope(types=["MatMul"]) if has_projector else None,
            advanced_parameters=AdvancedQuantizationParameters(
                # The default range, the mean of single cells' extremes, cuts off the rarest cells: those that are looked for.
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
                # Sums of 8-bit products overflow only where there is no unit for them; else a bit would be given away.
                overflow_fix=OverflowFix.DISABLE if _sums_8_bit_products() else OverflowFix.FIRST_LAYER,
            ),
        )


def has_bf16() -> bool:
    """Whether this processor multiplies in bfloat16; elsewhere OpenVINO imitates it, at a loss."""
    units = torch.cpu.get_capabilities()
    return any(units.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def _sums_8_bit_products() -> bool:
    units = torch.cpu.get_capabilities()
    return any(units.get(name, False) for name in ("avx512_vnni", "avx_vnni"))


class OpenVinoEngine:
    """Runs a stored graph on as many threads as PyTorch has, a batch on each."""

    def __init__(
        self, name: str, key: str, folder: Path, precision: str, image_size: int, layer: Layer, output: int
    ) -> None:
        import openvino as ov

        self.name, self.key = name, key
        self.layer = layer
        self._batch = batch_of(image_size)
        self._output = output
        core = ov.Core()
        model = core.read_model(folder / MODEL_NAME)
        model.reshape([self._batch, image_size, image_size, 3])
        self.dim = int(model.output(self._output).shape[1])
        options = {
            # Two streams of one core were faster than one of two, and lose less where other work wants a core.
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            # OMP_NUM_THREADS and Ray's workers share a machine out by PyTorch's threads.
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,
        }
        self._queue = ov.AsyncInferQueue(core.compile_model(model, "CPU", options))

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        """Decoded cells, uint8 (N, S, S, 3) → float32 (N, dim)."""
        out = np.empty((len(pixels), self.dim), np.float32)

        def keep(request: Any, start: int) -> None:
            out[start : start + self._batch] = request.get_output_tensor(self._output).data[: len(pixels) - start]

        self._queue.set_callback(keep)
        for start in range(0, len(pixels), self._batch):
            self._queue.start_async({0: padded(pixels, start, self._batch)}, start)
        self._queue.wait_all()
        return out
