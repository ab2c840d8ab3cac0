"""What doctor looks at: the machine, the libraries, the engines, and which stages have been run here."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import psutil
import torch

from cytomil import __version__
from cytomil.app.settings import Settings
from cytomil.bags.manifest import read_manifest
from cytomil.encoders.bundle import ENGINES_FOLDER, load_bundle, read_card, stored_engines
from cytomil.encoders.engines.record import read_record, require_valid
from cytomil.encoders.engines.registry import ENGINES, load_backend
from cytomil.errors import CytomilError
from cytomil.features.index import read_index
from cytomil.mil.triage_model import ENCODER_FOLDER, load_triage_model

Finding = tuple[str, str, str]
_LIBRARIES = ("torch", "torchvision", "dvc", "dvclive", "h5py", "scikit-learn", "openslide-python")


def examine(settings: Settings) -> list[Finding]:
    """One line per finding: its name, its state, a remark."""
    return [*_machine(), *_libraries(), *_engines(settings), *_stages(settings)]


def _machine() -> list[Finding]:
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(Path.cwd())
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return [
        ("cytomil", __version__, ""),
        ("processor", f"{psutil.cpu_count()} cores", f"PyTorch uses {torch.get_num_threads()} threads"),
        ("memory", f"{memory.available / 1e9:.0f} GB free", f"of {memory.total / 1e9:.0f} GB"),
        ("disk here", f"{disk.free / 1e9:.0f} GB free", f"of {disk.total / 1e9:.0f} GB"),
        ("CUDA GPU", gpu, "" if gpu != "none" else "everything runs on the processor"),
    ]


def _libraries() -> list[Finding]:
    return [(name, _version(name), "") for name in _LIBRARIES]


def _engines(settings: Settings) -> list[Finding]:
    """The engines that could be compiled here, and those stored in the encoder bundle and in the triage model's copy."""
    folders = (settings.compile.encoder, settings.rank.model / ENCODER_FOLDER)
    return [
        ("engine eager", "available", "PyTorch, any device"),
        *map(_backend, ENGINES.names()),
        *(found for folder in folders for found in _compiled(folder)),
    ]


def _backend(name: str) -> Finding:
    try:
        backend = load_backend(name)
    except CytomilError as error:  # another package's
        return (f"engine {name}", "not usable", str(error))
    return (f"engine {name}", _version(backend.libraries[0]), backend.describe())


def _compiled(bundle_path: Path) -> list[Finding]:
    names = stored_engines(bundle_path)
    try:
        bundle = load_bundle(bundle_path) if names else None
    except CytomilError:
        return []  # the line of the stage itself gives the fault
    if bundle is None:
        return []
    found = []
    for name in names:
        folder = bundle_path / ENGINES_FOLDER / name
        try:
            record = read_record(folder)
            require_valid(record, folder, bundle, torch.device(record.device))
            found.append((f"compiled {name}", f"{record.gain:.1f}× eager", str(folder)))
        except CytomilError as error:
            found.append((f"compiled {name}", "not usable", f"{error}; {folder}"))
    return found


def _stages(settings: Settings) -> list[Finding]:
    def bags() -> str:
        manifest = read_manifest(settings.pretrain.bags)
        return f"{len(manifest.rows)} bags, {sum(row.n_instances for row in manifest.rows):,} cells"

    def encoder() -> str:
        card = read_card(settings.pretrain.out)
        return f"{card.method}{', COLLAPSED' if card.collapsed else ''}"

    def features() -> str:
        return f"{len(read_index(settings.embed.out).rows)} bags"

    def model() -> str:
        return f"threshold {load_triage_model(settings.fit_mil.out).card.thresholds.decision:.3f}"

    return [
        _stage("bags", settings.pretrain.bags, bags),
        _stage("encoder", settings.pretrain.out, encoder),
        _stage("features", settings.embed.out, features),
        _stage("triage model", settings.fit_mil.out, model),
    ]


def _stage(name: str, path: Path, describe: Callable[[], str]) -> Finding:
    if not path.exists():
        return (name, "not here", str(path))
    try:
        return (name, describe(), str(path))
    except CytomilError as error:
        return (name, "unusable", str(error))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
