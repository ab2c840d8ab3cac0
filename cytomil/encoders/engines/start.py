"""From a record to a running engine."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from cytomil.encoders.bundle import EncoderBundle
from cytomil.encoders.engines.engine import Engine
from cytomil.encoders.engines.ncnn import NcnnEngine
from cytomil.encoders.engines.openvino import OpenVinoEngine
from cytomil.encoders.engines.record import EngineRecord
from cytomil.encoders.engines.tensorrt import TensorRtEngine
from cytomil.encoders.engines.torch_compile import TorchCompileEngine
from cytomil.encoders.stages import layer_dim
from cytomil.errors import EngineError
from cytomil.layer import Layer


def start_engine(
    record: EngineRecord, folder: Path, bundle: EncoderBundle, layer: Layer, device: torch.device
) -> Engine:
    """Load the compiled form in ``folder`` for one of the record's layers.

    Raises `EngineError` where its library cannot, whatever the library raises.
    """
    size, encoder = bundle.transform.image_size, bundle.encoder
    dim, output = layer_dim(encoder, layer), record.layers.index(str(layer))
    try:
        if record.engine == "openvino":
            return OpenVinoEngine(record.name, record.key, folder, record.precision, size, layer, output)
        if record.engine == "ncnn":
            return NcnnEngine(record.name, record.key, folder, layer, dim, output)
        if record.engine == "tensorrt":
            return TensorRtEngine(record.name, record.key, folder, record.precision, layer, dim, output, device)
        return TorchCompileEngine(record.name, record.key, copy.deepcopy(encoder), size, layer, device)
    # The libraries below raise errors of their own kinds for a missing driver, compiler or instruction.
    except (RuntimeError, OSError, ImportError, ValueError, TypeError) as error:
        raise EngineError(f"cannot be started ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120] if lines else ''}"
