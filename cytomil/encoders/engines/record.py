"""engine.json: what a stored engine was compiled for, and whether that is what stands here now."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from cytomil.encoders.bundle import ENGINE_CARD_NAME, EncoderBundle
from cytomil.encoders.engines import ncnn, openvino, tensorrt, torch_compile
from cytomil.errors import EngineError
from cytomil.files import read_json_card, sha256_of_file, sha256_of_json, write_json_card

SCHEMA = "cytomil.engine/2"
_LIBRARIES = {
    "openvino": openvino.LIBRARIES,
    "ncnn": ncnn.LIBRARIES,
    "tensorrt": tensorrt.LIBRARIES,
    "torch-compile": torch_compile.LIBRARIES,
}
# Where a library is not installed: the extra of this package that brings it.
_EXTRAS = {"ncnn": "ncnn", "pnnx": "ncnn", "torch-tensorrt": "tensorrt"}


@dataclass(frozen=True)
class EngineRecord:
    """What engine.json says of a compiled form.

    ``device`` is cpu or cuda, ``machine`` the processor or GPU it was compiled and measured on, ``versions`` those of its
    libraries, ``files`` the SHA-256 of each of its files, ``layers`` what it gives, in that order, ``agreement`` with eager
    by layer, ``images_per_second`` and ``eager_images_per_second`` measured in turn on that machine.
    """

    engine: str
    precision: str
    weights_sha256: str
    image_size: int
    device: str
    machine: dict[str, str]
    versions: dict[str, str]
    files: dict[str, str]
    layers: list[str]
    agreement: dict[str, dict[str, float]]
    images_per_second: float
    eager_images_per_second: float
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its folder's name: openvino-int8, torch-compile."""
        return engine_name(self.engine, self.precision)

    @property
    def key(self) -> str:
        """What feature caches call it: another calibration gives other embeddings, so the files have a say."""
        return f"{self.name}@{sha256_of_json(self.files)[:8]}" if self.files else self.name

    @property
    def is_portable(self) -> bool:
        """Whether what is stored is a graph, which is compiled where it runs; 8-bit ranges suit one processor alone."""
        return self.engine == "openvino" and self.precision != "int8"

    @property
    def gain(self) -> float:
        """How many times eager's images per second it gave where it was compiled."""
        return self.images_per_second / self.eager_images_per_second

    def write(self, folder: Path) -> None:
        """Write engine.json into ``folder``."""
        write_json_card(folder / ENGINE_CARD_NAME, {"schema": SCHEMA, "name": self.name} | asdict(self))


def engine_name(engine: str, precision: str) -> str:
    """``openvino``, ``int8`` → ``openvino-int8``; torch-compile knows one precision and goes without."""
    return engine if engine == "torch-compile" else f"{engine}-{precision}"


def read_record(folder: Path) -> EngineRecord:
    """Read engine.json. Raises `EngineError` where it is missing, damaged, or of another schema."""
    card = read_json_card(folder / ENGINE_CARD_NAME, SCHEMA, EngineError, "cytomil compile")
    try:
        return EngineRecord(**{name: card[name] for name in EngineRecord.__dataclass_fields__})
    except KeyError as error:
        raise EngineError(f"{folder / ENGINE_CARD_NAME} is damaged (it lacks {error}). Make it again.") from None


def require_valid(record: EngineRecord, folder: Path, bundle: EncoderBundle, device: torch.device) -> None:
    """Raise `EngineError`, saying in a few words why, unless the engine can run here and gives this encoder's embeddings."""
    if record.weights_sha256 != bundle.sha256:
        raise EngineError("made for other weights")
    if record.image_size != bundle.transform.image_size:
        raise EngineError(f"made for cells of {record.image_size} px")
    if record.device != device.type:
        raise EngineError(f"made for {record.device}, not for {device.type}")
    require_versions(record)
    if record.machine != machine(device) and not record.is_portable:
        raise EngineError(f"made on another machine ({', '.join(record.machine.values())})")
    if record.precision == "bf16" and record.engine == "openvino" and not openvino.has_bf16():
        raise EngineError("this processor has no bfloat16")
    for name, sha256 in record.files.items():
        if not (folder / name).is_file() or sha256_of_file(folder / name) != sha256:
            raise EngineError(f"its {name} is missing or damaged")


def require_versions(record: EngineRecord) -> None:
    """Raise `EngineError` where a library is absent or not the one it was compiled with."""
    here = versions_of(record.engine)
    for library, version in record.versions.items():
        if here.get(library) != version:
            raise EngineError(f"made with {library} {version}, here is {here.get(library)}")


def versions_of(engine: str) -> dict[str, str]:
    """The versions of an engine's libraries. Raises `EngineError` naming the extra of one that is not installed."""
    found = {}
    for library in _LIBRARIES[engine]:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            wanted = f"'cytomil[{_EXTRAS[library]}]'" if library in _EXTRAS else library
            raise EngineError(f"{library} is not installed; pip install {wanted}") from None
    return found


def machine(device: torch.device) -> dict[str, str]:
    """What decides whether compiled code fits: the GPU's name, or the processor's and its vector instructions."""
    if device.type == "cuda":
        return {"gpu": torch.cuda.get_device_name(device)}
    return {"processor": _processor(), "instructions": torch.backends.cpu.get_cpu_capability()}


@cache
def _processor() -> str:
    """The processor's name and a hash of its features: AMX, VNNI and bfloat16 units change what 8 and 16 bits give."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        import platform

        return platform.processor() or platform.machine()
    known = dict(line.split(":", 1) for line in lines if ":" in line)
    said = {key.strip(): value.strip() for key, value in known.items()}
    units = [
        name
        for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
        if name in said.get("flags", "").split()
    ]
    return " ".join([said.get("model name", "unknown"), *units])
