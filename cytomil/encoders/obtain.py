"""Get published weights by name, as a local file with a verified hash, from a package, the cache or the network."""

from __future__ import annotations

import pickle
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import platformdirs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cytomil.encoders.published import Download, Published, TimmWeights, Wheel
from cytomil.errors import NotFoundError, WeightsFileError
from cytomil.files import sha256_of_file, write_text
from cytomil.weights import save_weights

# Keys under which training code saves the weights. DINO publishes its teacher.
_NESTED = ("teacher", "state_dict", "model")


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, in the file's order: plain, or under ``teacher``, ``state_dict`` or ``model``.

    Raises:
        NotFoundError: there is no such file.
        WeightsFileError: the file holds no tensors, or pickled code.
    """
    if not path.is_file():
        state = "is a folder" if path.exists() else "does not exist"
        raise NotFoundError(f"{path} {state}. Name a local weights file with --weights, or weights by their name.")
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsFileError(
            f"{path} cannot be read as weights ({reason}). cytomil reads only tensors and runs no pickled code. Save the "
            "state dict with torch.save, or as safetensors."
        ) from None
    for key in _NESTED:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    tensors = {str(k): v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, dict) else {}
    if not tensors:
        raise WeightsFileError(
            f"{path} holds no state dict. Save the network's with torch.save(model.state_dict(), …)."
        )
    return tensors


# EfficientNet-PyTorch's names of layers outside the blocks, and timm's.
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# Inside: a block that does not expand its channels begins with the depthwise convolution.
_PLAIN_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_EXPANDING_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_OF_A_BLOCK = re.compile(r"_blocks\.(\d+)\.(\w+)\.(\w+)$")

# Names of a layer's tensors in TensorFlow and other libraries.
_KINDS = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_COUNTER = "num_batches_tracked"


def from_efficientnet_pytorch(tensors: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Rename EfficientNet-PyTorch's tensors to timm's names if both networks are EfficientNets.

    EfficientNet-PyTorch numbers all blocks consecutively, timm numbers them per stage.
    """
    blocks: Any = getattr(network, "blocks", None)
    if "_conv_stem.weight" not in tensors or not isinstance(blocks, nn.Sequential):
        return dict(tensors)
    places = [
        (stage, number) for stage, part in enumerate(blocks.children()) for number, _ in enumerate(part.children())
    ]
    return {_timm_name(name, tensors, places): tensor for name, tensor in tensors.items()}


def _timm_name(name: str, tensors: Mapping[str, Tensor], places: list[tuple[int, int]]) -> str:
    if (match := _OF_A_BLOCK.match(name)) and int(match[1]) < len(places):
        stage, number = places[int(match[1])]
        expands = f"_blocks.{match[1]}._expand_conv.weight" in tensors
        known = (_EXPANDING_BLOCK if expands else _PLAIN_BLOCK) | _SQUEEZE
        return f"blocks.{stage}.{number}.{known.get(match[2], match[2])}.{match[3]}"
    layer, _, kind = name.rpartition(".")
    return f"{_OUTSIDE[layer]}.{kind}" if layer in _OUTSIDE else name


def by_order(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Assign the tensors to the network's names by their order in the file; None if the assignment is uncertain.

    It is certain if all of these conditions hold. Batch counters are ignored.

    - The file has no name of the network.
    - All shapes match one by one.
    - Every tensor is of the expected kind (weight, bias, running mean or variance).
    - Only a classifier remains at the end of the file.
    """
    given = [(name, tensor) for name, tensor in tensors.items() if not name.endswith(_COUNTER)]
    places = [(name, tensor) for name, tensor in wanted.items() if not name.endswith(_COUNTER)]
    rest = [tuple(tensor.shape) for _, tensor in given[len(places) :]]
    is_classifier = len(rest) == 2 and len(rest[0]) == 2 and rest[1] == rest[0][:1]
    if len(given) < len(places) or (rest and not is_classifier) or set(tensors) & set(wanted):
        return None
    found: dict[str, Tensor] = {}
    for (name, tensor), (place, like) in zip(given, places, strict=False):
        if tensor.shape != like.shape or _kind(name) != _kind(place):
            return None
        found[place] = tensor
    return found


def _kind(name: str) -> str:
    last = re.split(r"[./]", name.removesuffix(":0"))[-1]
    return _KINDS.get(last, last)


_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Obtained:
    """A local file of published weights. ``hash_from`` is the source of the hash that it was checked against."""

    path: Path
    sha256: str
    hash_from: str


def cache_folder() -> Path:
    """The folder of downloaded weights, in the user's cache. XDG_CACHE_HOME moves it."""
    return platformdirs.user_cache_path("cytomil", appauthor=False) / "weights"


def obtain(published: Published, note: Callable[[str], None]) -> Obtained:
    """The file of these weights, downloaded if necessary. ``note`` receives one line before a download.

    Every call checks the hash against the published one and that of the first download.

    Raises:
        WeightsFileError: the file cannot be obtained, or its hash is wrong.
    """
    if isinstance(published.source, Wheel):
        return _from_package(published, published.source)
    kept = cache_folder() / _file_name(published)
    recorded = kept.with_name(f"{kept.name}.sha256")
    if not (kept.is_file() and recorded.is_file()):
        _download(published, kept, recorded, note)
    sha256 = sha256_of_file(kept)
    # In the format of sha256sum, so that users can check it without cytomil.
    first = recorded.read_text(encoding="utf-8").partition(" ")[0]
    if sha256 != first or not sha256.startswith(published.sha256):
        raise WeightsFileError(f"{kept} is damaged or was replaced: its SHA-256 is {sha256}. Delete it and run again.")
    if not published.sha256:
        return Obtained(kept, sha256, "recorded at the first download; no source publishes it")
    extent = "" if len(published.sha256) == 64 else f"its first {len(published.sha256)} digits, "
    return Obtained(kept, sha256, f"{extent}stated by {published.hash_from}")


def _from_package(published: Published, wheel: Wheel) -> Obtained:
    # Located without importing the package, because its code is not needed.
    spec = util.find_spec(wheel.package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    path = Path(places[0]) / wheel.path if places else None
    if path is None or not path.is_file():
        package = f"'cytomil[{wheel.extra}]'" if wheel.extra else wheel.distribution
        raise WeightsFileError(
            f"weights {published.name} are in {wheel}, which is not installed. Run: pip install {package}"
        )
    sha256 = sha256_of_file(path)
    if sha256 != published.sha256:
        raise WeightsFileError(
            f"{path} is not the expected file of {published.name}: its SHA-256 is {sha256}. Reinstall "
            f"{wheel.distribution} 0.1.0."
        )
    return Obtained(path, sha256, f"stated by {published.hash_from}")


def _file_name(published: Published) -> str:
    if isinstance(published.source, Download):
        return f"{published.name}-{Path(urlsplit(published.source.url).path).name}"
    assert isinstance(published.source, TimmWeights)
    return f"timm-{published.source.name}.safetensors"


def _download(published: Published, kept: Path, recorded: Path, note: Callable[[str], None]) -> None:
    size = f" ({published.megabytes} MB)" if published.megabytes else ""
    note(f"downloading weights {published.name}{size}, {published.source}, into {kept.parent}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=kept.parent) as scratch, _network_timeout():
            partial = Path(scratch) / kept.name
            if isinstance(published.source, Download):
                torch.hub.download_url_to_file(
                    published.source.url, str(partial), hash_prefix=published.sha256 or None, progress=False
                )
            elif isinstance(published.source, TimmWeights):
                _save_timm_weights(published.source.name, partial, Path(scratch))
            # A truncated file or an error page must not be kept.
            read_state(partial)
            sha256 = sha256_of_file(partial)
            shutil.move(partial, kept)
    # torch.hub raises urllib's errors, and RuntimeError for a wrong hash. timm and the hub raise many other kinds.
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        unreadable = isinstance(error, WeightsFileError)
        reason = "the download cannot be read as weights: truncated, or a web page" if unreadable else lines[0][:200]
        raise WeightsFileError(
            f"weights {published.name} could not be downloaded ({reason}). Their source is {published.source}. Get the file "
            f"on a machine with network access and run: cytomil pretrain --weights FILE --arch {published.architecture}"
        ) from None
    write_text(recorded, f"{sha256}  {kept.name}\n")


def _save_timm_weights(name: str, path: Path, scratch: Path) -> None:
    import timm

    network = timm.create_model(name, pretrained=True, num_classes=0, cache_dir=scratch)
    state = {key: tensor.detach().contiguous().clone() for key, tensor in network.state_dict().items()}
    save_weights(state, path)


@contextmanager
def _network_timeout() -> Iterator[None]:
    """Close a connection that sends no data for `_TIMEOUT_S` seconds. By default there is no timeout."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
