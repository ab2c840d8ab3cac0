"""What an encoder starts from: an architecture, and weights that others have trained, from a local file."""

from __future__ import annotations

import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cytomil.encoders.architecture import Architecture, Encoder
from cytomil.encoders.backbones import Backbone, is_resnet, make_backbone, require_image_size
from cytomil.errors import NotFoundError, WeightsFileError
from cytomil.files import sha256_of_file

_DINOBLOOM = (
    "These are DinoBloom's weights, or look like them: its pretraining saw the bone-marrow set (Matek et al., 2021) and "
    "other public sets of blood cells, so figures on their cells are not figures on unseen cells."
)
# Where training code keeps the weights inside what it saves; a DINO run's teacher is what it gives away.
_NESTED = ("teacher", "state_dict", "model")
_DINOBLOOM_TOKENS = 1 + (224 // 14) ** 2


@dataclass(frozen=True)
class StartWeights:
    """Weights that fit a backbone exactly: ``state`` is its whole state. ``mean`` and ``std`` are those they go with.

    ``tensors`` came from ``file``; ``caveats`` are what a reader of figures must know of them, in whole sentences.
    """

    file: str
    sha256: str
    tensors: int
    state: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    caveats: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """What encoder.json says of them."""
        return {"file": self.file, "sha256": self.sha256, "tensors": self.tensors}

    def put_into(self, encoder: Encoder) -> None:
        """Give an encoder of that architecture these weights, and the channel statistics they go with."""
        encoder.backbone.load_state_dict(self.state)
        encoder.normalise_by(torch.tensor(self.mean), torch.tensor(self.std))


@dataclass(frozen=True)
class Start:
    """An architecture, and weights for it; without, they are drawn at random."""

    architecture: Architecture
    weights: StartWeights | None = None

    @property
    def libraries(self) -> tuple[str, ...]:
        """What else but torchvision shapes the network."""
        return () if is_resnet(self.architecture.name) else ("timm",)


def prepare_start(architecture: Architecture, image_size: int, weights: Path | None = None) -> Start:
    """Read the start weights, if any, and try the architecture on this image size, before hours are spent on it.

    Takes ImageNet weights as torchvision ships them, timm's, and DINO's and DINOv2's (DinoBloom's): a state dict, or one
    under ``teacher``, ``state_dict`` or ``model``, its tensors with or without ``backbone.`` before their names; heads
    and classifiers are left out. A transformer's position embedding is interpolated to the image size, by timm.

    Raises:
        SettingsError: the image size does not suit the architecture.
        NotFoundError, WeightsFileError: the file is not there, not weights, or those of another architecture.
    """
    if weights is None and is_resnet(architecture.name):
        return Start(architecture)  # it takes any image size
    backbone = make_backbone(architecture.name, architecture.stem, architecture.image_size)
    require_image_size(architecture.name, backbone.network, backbone.dim, image_size)
    if weights is None:
        return Start(architecture)
    return Start(architecture, _fitted(weights, _read(weights), architecture, backbone))


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        state = "is a folder" if path.exists() else "does not exist"
        raise NotFoundError(f"{path} {state}. Name a local weights file with --weights; cytomil downloads none.")
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsFileError(
            f"{path} cannot be read as weights ({reason}). cytomil takes tensors alone and runs no pickled code: save the "
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


def _fitted(path: Path, tensors: dict[str, Tensor], architecture: Architecture, backbone: Backbone) -> StartWeights:
    if any(name.startswith("projector.") for name in tensors):
        # What its training saw, instance labels perhaps, stands in its encoder.json and would be lost on the way.
        raise WeightsFileError(
            f"{path} is an encoder of cytomil's. Use its folder as it is: cytomil embed --encoder FOLDER."
        )
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if any(name.startswith("backbone.") for name in tensors):
        tensors = {k.removeprefix("backbone."): v for k, v in tensors.items() if k.startswith("backbone.")}
    caveats = (_DINOBLOOM,) if _looks_like_dinobloom(path, tensors) else ()
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(backbone.classifiers)}
    given = _as_timm_has_them(tensors, backbone)
    wanted = backbone.network.state_dict()
    fitting = {name for name, tensor in wanted.items() if name in given and given[name].shape == tensor.shape}
    # Files older than PyTorch 0.4.1, ImageNet's ResNets among them, do not count batches.
    missing = [name for name in wanted if name not in fitting and not name.endswith("num_batches_tracked")]
    surplus = [name for name in given if name not in wanted]
    if missing or surplus:
        raise WeightsFileError(_misfit(path, architecture, given, wanted, len(fitting), missing, surplus))
    state = wanted | {name: given[name].to(wanted[name].dtype) for name in fitting}
    broken = next((name for name in fitting if not torch.isfinite(state[name]).all()), None)
    if broken:
        raise WeightsFileError(f"{path}: {broken} is not finite. The file is damaged, or its training diverged.")
    return StartWeights(path.name, sha256_of_file(path), len(fitting), state, backbone.mean, backbone.std, caveats)


def _as_timm_has_them(tensors: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
    """With timm's own names and this image size's position embedding, where timm knows how to make them."""
    convert = getattr(sys.modules[type(backbone.network).__module__], "checkpoint_filter_fn", None)
    if backbone.library != "timm" or convert is None:
        return tensors
    try:
        return convert(tensors, backbone.network)
    except (RuntimeError, KeyError, ValueError, AttributeError, IndexError, AssertionError):
        return tensors  # what does not fit is told by name and shape


def _misfit(
    path: Path,
    architecture: Architecture,
    given: dict[str, Tensor],
    wanted: dict[str, Tensor],
    n_fitting: int,
    missing: list[str],
    surplus: list[str],
) -> str:
    if missing:
        first = missing[0]
        there = f"{tuple(given[first].shape)} in the file" if first in given else "not in the file"
        reason = f"the first that does not is {first}, {there}, {tuple(wanted[first].shape)} here"
    else:
        reason = f"but the file has {len(surplus)} more, the first of them {surplus[0]}"
    small = architecture.stem == "small" and missing == ["conv1.weight"]
    cure = (
        "They have ImageNet's first layers: use --stem standard, or an --image-size above 64."
        if small
        else "Name the architecture they were trained with by --arch."
    )
    return f"{path} does not fit {architecture.name}: {n_fitting} of {len(wanted)} tensors match, {reason}. {cure}"


def _looks_like_dinobloom(path: Path, tensors: dict[str, Tensor]) -> bool:
    """By its name, or as a DINOv2 transformer of patch 14 trained at 224 px; Meta's own were trained at 518."""
    position = tensors.get("pos_embed")
    shape = "mask_token" in tensors and position is not None and position.shape[1:2] == (_DINOBLOOM_TOKENS,)
    return shape or "dinobloom" in path.name.lower()
