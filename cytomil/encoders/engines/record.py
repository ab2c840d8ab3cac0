"""engine.json: what a stored engine was compiled for, and whether it can run here."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from cytomil.cards import Card, Count, Number, Text, read_card
from cytomil.encoders.bundle import ENGINE_CARD_NAME, EncoderBundle
from cytomil.encoders.engines.engine import Backend, CompiledForm
from cytomil.encoders.engines.registry import load_backend
from cytomil.errors import EngineError, SettingsError
from cytomil.files import sha256_of_file, sha256_of_json, write_json_card
from cytomil.layer import Layer

SCHEMA = "cytomil.engine/2"


class EngineRecord(Card):
    """The content of engine.json.

    Args:
        name: the name of its folder, such as openvino-int8 or torch-compile.
        engine: the name of its backend.
        precision: its number format.
        weights_sha256: hash of the encoder's weights.
        image_size: side of a cell in pixels.
        device: cpu or cuda.
        machine: the processor or GPU on which it was compiled and measured.
        versions: the versions of its libraries.
        files: SHA-256 of each of its files.
        layers: the layers that it computes, in this order.
        agreement: the agreement with eager, per layer.
        images_per_second: its speed on that machine.
        eager_images_per_second: eager's speed, measured alternately.
        facts: further metadata.
    """

    name: Text
    engine: Text
    precision: Text
    weights_sha256: Text
    image_size: Count
    device: Text
    machine: dict[str, Text]
    versions: dict[str, Text]
    files: dict[str, Text]
    layers: list[Text]
    agreement: dict[str, dict[str, Number]]
    images_per_second: Number
    eager_images_per_second: Annotated[Number, Field(gt=0)]
    facts: dict[str, Any] = Field(default_factory=dict)

    @property
    def key(self) -> str:
        """Its name in feature caches. It contains a hash of the files, because another calibration changes embeddings."""
        return f"{self.name}@{sha256_of_json(self.files)[:8]}" if self.files else self.name

    @property
    def gain(self) -> float:
        """Its speed as a multiple of eager's, on the machine that compiled it."""
        return self.images_per_second / self.eager_images_per_second

    def write(self, folder: Path) -> None:
        """Write engine.json into ``folder``."""
        write_json_card(folder / ENGINE_CARD_NAME, {"schema": SCHEMA} | self.to_json())


def read_record(folder: Path) -> EngineRecord:
    """Read engine.json. Raises `EngineError` if it is missing, damaged, or of another schema."""
    return read_card(folder / ENGINE_CARD_NAME, EngineRecord, SCHEMA, EngineError, "cytomil compile")


def require_valid(record: EngineRecord, folder: Path, bundle: EncoderBundle, device: torch.device) -> None:
    """Raise `EngineError` with the reason unless the engine belongs to this encoder and can run here."""
    if record.weights_sha256 != bundle.sha256:
        raise EngineError("made for other weights")
    if record.image_size != bundle.transform.image_size:
        raise EngineError(f"made for cells of {record.image_size} px")
    if record.device != device.type:
        raise EngineError(f"made for {record.device}, not for {device.type}")
    backend = backend_of(record)
    here = backend.versions()
    for library, version in record.versions.items():
        if here.get(library) != version:
            raise EngineError(f"made with {library} {version}, here is {here.get(library)}")
    if record.machine != machine(device) and not backend.is_portable(record.precision):
        raise EngineError(f"made on another machine ({', '.join(record.machine.values())})")
    if why := backend.why_not_run(record.precision):
        raise EngineError(why)
    for name, sha256 in record.files.items():
        if not (folder / name).is_file() or sha256_of_file(folder / name) != sha256:
            raise EngineError(f"its {name} is missing or damaged")


def form_of(record: EngineRecord, folder: Path, bundle: EncoderBundle, device: torch.device) -> CompiledForm:
    """The compiled form in ``folder``, which the record describes."""
    layers = tuple(Layer.parse(layer) for layer in record.layers)
    return CompiledForm(record.name, bundle.encoder, layers, record.image_size, record.precision, device, folder)


def backend_of(record: EngineRecord) -> Backend:
    """The backend that runs the engine. Raises `EngineError` if it is not installed here."""
    try:
        return load_backend(record.engine)
    except SettingsError as error:
        raise EngineError(f"its backend cannot be loaded: {error}") from None


def machine(device: torch.device) -> dict[str, str]:
    """What compiled code depends on: the name of the GPU, or the name and vector instructions of the processor."""
    if device.type == "cuda":
        return {"gpu": torch.cuda.get_device_name(device)}
    return {"processor": _processor(), "instructions": torch.backends.cpu.get_cpu_capability()}


@cache
def _processor() -> str:
    """The name of the processor and its units that change results in 8 and 16 bits: AMX, VNNI and bfloat16."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        import platform

        return platform.processor() or platform.machine()
    known = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {key.strip(): value.strip() for key, value in known.items()}
    units = [
        name
        for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
        if name in fields.get("flags", "").split()
    ]
    return " ".join([fields.get("model name", "unknown"), *units])
