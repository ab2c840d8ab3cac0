"""The interfaces of engines and of the backends that compile them, and the eager engine."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from cytomil.config import Config
from cytomil.encoders.architecture import Encoder
from cytomil.encoders.bundle import pick_device
from cytomil.encoders.stages import Layers, layer_dim
from cytomil.errors import CytomilError, EngineError
from cytomil.layer import Layer
from cytomil.threads import keep_freed_memory


class Engine(Protocol):
    """An encoder ready to run on blocks of decoded cells.

    Args:
        name: the name that users see, such as openvino-int8.
        key: the name and a hash of the compiled form, because another calibration gives other embeddings. The keys of
            feature caches contain it, so that the embeddings of two engines never mix.
        layer: the layer of the encoder that it computes.
        dim: the length of the layer.
    """

    name: str
    key: str
    layer: Layer
    dim: int

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        """Decoded cells, uint8 (N, S, S, 3) → float32 (N, dim), in the same order. N may be 0."""
        ...


Embed = Callable[[np.ndarray], np.ndarray]
"""The signature of `Engine.embed`."""


@dataclass
class CompiledEngine:
    """An `Engine` that a backend has started."""

    name: str
    key: str
    layer: Layer
    dim: int
    embed: Embed


@dataclass(frozen=True)
class CompiledForm:
    """What a backend compiles, and where the compiled form is stored.

    Args:
        name: the name of the engine, such as openvino-int8.
        encoder: the encoder, which is in use elsewhere. A backend must use `network`, which is a copy.
        layers: the layers that the form computes, in this order.
        image_size: the side S of a cell in pixels.
        precision: one of the backend's precisions.
        device: the device that the form runs on.
        folder: the folder of its files.
    """

    name: str
    encoder: Encoder
    layers: tuple[Layer, ...]
    image_size: int
    precision: str
    device: torch.device
    folder: Path

    def network(self, *layers: Layer) -> Layers:
        """A copy of the encoder on the CPU, in evaluation mode. Maps float32 (N, 3, S, S) in 0 to 1 to a tuple of (N, dim).

        It computes ``layers``, or all of the form's layers if none is named.
        """
        return Layers(copy.deepcopy(self.encoder).cpu(), layers or self.layers).eval()

    def output(self, layer: Layer) -> int:
        """The index of ``layer`` among the outputs of the compiled form."""
        return self.layers.index(layer)

    def dim(self, layer: Layer) -> int:
        """The length of ``layer``."""
        return layer_dim(self.encoder, layer)


_DEVICES = {"cpu": "a processor", "cuda": "an NVIDIA GPU"}


class Backend(ABC):
    """One way to compile the encoder, such as OpenVINO. A subclass defines `precisions`, `build` and `start`.

    ``name`` is the one it is registered under. ``own`` holds its own settings, an instance of `Config`.
    """

    Config: ClassVar[type[Config]] = Config
    """Settings of its own for `build`: a subclass of `cytomil.config.Config`. `start` gets the defaults."""
    precisions: ClassVar[tuple[str, ...]]
    """Number formats it offers: float32, bf16, fp16, int8."""
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    """Types of the devices it runs on: cpu, cuda."""
    libraries: ClassVar[tuple[str, ...]] = ("torch",)
    """Installed packages that it needs. An engine is valid only with the versions that it was compiled with."""
    install: ClassVar[str] = ""
    """Argument of ``pip install`` if a library is missing; empty: the library's name."""
    must_be_faster: ClassVar[bool] = False
    """Whether `compile` refuses an engine that is not faster than eager on this machine."""
    caveat: ClassVar[str] = ""
    """A sentence for users that `compile` and `doctor` print."""

    def __init__(self, name: str, own: Any) -> None:
        self.name, self.own = name, own

    @abstractmethod
    def build(self, form: CompiledForm, calibration: np.ndarray) -> dict[str, Any]:
        """Compile ``form`` and write its files into ``form.folder``, which is empty.

        Args:
            form: what to compile.
            calibration: the `calibration_cells`, uint8 (M, S, S, 3).

        Returns:
            Metadata for the engine's record.

        Raises:
            EngineError: the encoder cannot be compiled. Any other error is converted to one.
        """

    @abstractmethod
    def start(self, form: CompiledForm, layer: Layer) -> Embed:
        """A function that embeds cells: uint8 (N, S, S, 3) → float32 (N, dim) of ``layer``, one of the form's layers.

        It reads the files in ``form.folder``. If that fails, it may raise any error.
        """

    def auto_precisions(self) -> Sequence[str]:
        """Precisions that ``auto`` tries here, in this order, until one agrees with eager."""
        return self.precisions[:1]

    def calibration_cells(self, precision: str) -> int:
        """Number of training cells that `build` needs in this precision, in addition to those for the comparison."""
        return 0

    def why_not_build(self, precision: str) -> str:
        """Why this precision cannot be compiled on this machine, in a few words; empty if it can."""
        try:
            self.versions()
        except EngineError as error:
            return str(error)
        return self.why_not_run(precision)

    def why_not_run(self, precision: str) -> str:
        """Why an engine of this precision cannot run on this machine, in a few words; empty if it can."""
        return ""

    def is_portable(self, precision: str) -> bool:
        """Whether an engine may run on another machine of the same device type, if it agrees with eager there."""
        return False

    @classmethod
    def stored_name(cls, name: str, precision: str) -> str:
        """The name of the engine and of its folder: ``openvino``, ``int8`` → ``openvino-int8``."""
        return f"{name}-{precision}"

    @classmethod
    def stored_names(cls, name: str) -> list[str]:
        """The names of its engines in all precisions."""
        return [cls.stored_name(name, precision) for precision in cls.precisions]

    def device(self, requested: str) -> torch.device:
        """The device for the user's ``--device``. Raises `EngineError` if the backend does not run on it."""
        if self.devices == ("cpu",):
            return torch.device("cpu")
        chosen = pick_device(requested)
        if chosen.type not in self.devices:
            needed = " or ".join(_DEVICES.get(one, one) for one in self.devices)
            found = "" if torch.cuda.is_available() else ", and PyTorch finds none"
            raise EngineError(f"{self.name} needs {needed}{found}. Use another --engine; `cytomil doctor` lists them.")
        return chosen

    def versions(self) -> dict[str, str]:
        """The versions of its libraries. Raises `EngineError` naming one that is not installed."""
        found = {}
        for library in self.libraries:
            try:
                found[library] = metadata.version(library)
            except metadata.PackageNotFoundError:
                raise EngineError(f"{library} is not installed; pip install {self.install or library}") from None
        return found

    def describe(self) -> str:
        """Its precisions and devices, and what is missing here, on one line."""
        missing = dict.fromkeys(filter(None, map(self.why_not_build, self.precisions)))
        on = " or ".join(_DEVICES.get(one, one) for one in self.devices)
        return "; ".join([f"{', '.join(self.precisions)} on {on}", *filter(None, [self.caveat]), *missing])


def start_engine(backend: Backend, form: CompiledForm, layer: Layer, key: str) -> Engine:
    """Start a compiled form for one of its layers. Raises `EngineError` if it cannot be started, for whatever reason."""
    with one_line_errors("cannot be started"):
        return CompiledEngine(form.name, key, layer, form.dim(layer), backend.start(form, layer))


@contextmanager
def one_line_errors(what: str) -> Iterator[None]:
    """Turn an error of a backend's library into an `EngineError`: ``what``, then the first line of the error.

    Libraries raise errors of many kinds for a missing driver, compiler or instruction.
    """
    try:
        yield
    except (CytomilError, MemoryError):
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0][:120] if lines else ''}"
        raise EngineError(f"{what} ({reason})") from error


_MIN_CELLS = 8  # of 224 px; with OpenVINO, batches of 1, 4, 16 and 32 were no faster
_MAX_CELLS = 64
# Of 96 px. EfficientNet-Lite0, eager, on one core: 2.9 ms per cell, 3.2 with batches of 8 and 32, 5.6 with 128.
_CACHE_SIZED = 16


def batch_of(image_size: int) -> int:
    """Batch size of a compiled form for cells of ``image_size`` px: about the same number of pixels for any size."""
    return int(min(_MAX_CELLS, max(_MIN_CELLS, _MIN_CELLS * (224 / image_size) ** 2)))


def cache_sized_batch(image_size: int) -> int:
    """Batch size of eager on a processor for cells of ``image_size`` px. Larger feature maps do not fit into its caches."""
    return max(1, int(_CACHE_SIZED * (96 / image_size) ** 2))


def padded(pixels: np.ndarray, start: int, batch: int) -> np.ndarray:
    """Cells ``start`` to ``start + batch`` of uint8 (N, S, S, 3). If fewer are left, black cells are appended."""
    part = pixels[start : start + batch]
    if len(part) == batch:
        return np.ascontiguousarray(part)
    filled = np.zeros((batch, *pixels.shape[1:]), pixels.dtype)
    filled[: len(part)] = part
    return filled


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
