"""The initial state of an encoder: an architecture, and optionally published or local weights."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cytomil.encoders.architecture import (
    Architecture,
    Backbone,
    Encoder,
    is_resnet,
    make_backbone,
    require_image_size,
    resolve_architecture,
)
from cytomil.encoders.obtain import Obtained, by_order, from_efficientnet_pytorch, obtain, read_state
from cytomil.encoders.published import DINOBLOOM_CAVEAT, NONE, Published, find_published, is_published, refuse_unknown
from cytomil.errors import SettingsError, WeightsFileError
from cytomil.files import sha256_of_file

AUTO = "auto"
_WITHOUT_WEIGHTS = "resnet18"
_BY_ORDER = (
    "The names in {file} are not {architecture}'s. Its tensors were assigned in the order of the file, because all shapes "
    "and kinds match. Make sure that they are {architecture}'s weights."
)
_DINOBLOOM_TOKENS = 1 + (224 // 14) ** 2


@dataclass(frozen=True)
class InitialWeights:
    """Weights that fit a backbone exactly.

    Args:
        file: name of the file.
        sha256: hash of the file.
        tensors: number of tensors taken from the file.
        state: the complete state of the backbone.
        mean: channel means that the weights were trained with.
        std: channel standard deviations that the weights were trained with.
        caveats: what readers of figures must know, as complete sentences.
        published: name, source and licence of published weights.
    """

    file: str
    sha256: str
    tensors: int
    state: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    caveats: tuple[str, ...]
    published: dict[str, str] = field(default_factory=dict)

    def metadata(self) -> dict[str, Any]:
        """The record of these weights in encoder.json."""
        return {"file": self.file, "sha256": self.sha256, "tensors": self.tensors, **self.published}

    def load_into(self, encoder: Encoder) -> None:
        """Load the weights and their channel statistics into an encoder of the same architecture."""
        encoder.backbone.load_state_dict(self.state)
        encoder.normalise_by(torch.tensor(self.mean), torch.tensor(self.std))


@dataclass(frozen=True)
class Initialisation:
    """An architecture and its initial weights; None: random weights."""

    architecture: Architecture
    weights: InitialWeights | None = None

    @property
    def libraries(self) -> tuple[str, ...]:
        """The libraries besides torchvision that define the network."""
        return () if is_resnet(self.architecture.name) else ("timm",)


def resolve_initialisation(
    weights: str,
    arch: str,
    stem: str,
    image_size: int,
    projection_dim: int,
    projector: str = "plain",
    note: Callable[[str], None] = lambda _: None,
) -> Initialisation:
    """The architecture and the initial weights of these settings.

    Args:
        weights: ``none``, a published name (see `cytomil.encoders.published`) or a file.
        arch: an architecture; ``auto``: that of the published weights, else resnet18.
        stem: ``auto``, ``standard`` or ``small``.
        image_size: side of a cell in pixels.
        projection_dim: length of z; 0: no projector.
        projector: see `make_projector`.
        note: receives one line before a download.

    Raises:
        SettingsError: a name is unknown, the published weights are for another architecture, or the image size does not
            suit the architecture.
        NotFoundError, WeightsFileError: see `prepare_initialisation`.
    """
    if weights == NONE or not is_published(weights):
        path = None if weights == NONE else Path(weights)
        if path and not path.exists() and not path.suffix and len(path.parts) == 1:
            refuse_unknown(weights)
        name = _WITHOUT_WEIGHTS if arch == AUTO else arch
        architecture = resolve_architecture(name, stem, projection_dim, image_size, projector)
        return prepare_initialisation(architecture, image_size, path)
    published = find_published(weights)
    if arch not in (AUTO, published.architecture):
        raise SettingsError(
            f"--weights {weights} are for {published.architecture}, not for {arch}. Remove --arch, or use --weights none "
            f"(random weights) or a file of weights for {arch}."
        )
    if is_resnet(published.architecture) and stem == AUTO:
        stem = "standard"  # the published weights have these first layers, whatever the image size
    architecture = resolve_architecture(published.architecture, stem, projection_dim, image_size, projector)
    backbone = _build(architecture, image_size)
    return Initialisation(architecture, _load_published(published, obtain(published, note), architecture, backbone))


def prepare_initialisation(architecture: Architecture, image_size: int, weights: Path | None = None) -> Initialisation:
    """Read the initial weights, if any, and check that the architecture runs at this image size.

    It reads weights of torchvision, timm, EfficientNet-PyTorch, DINO and DINOv2 (DinoBloom): a state dict, or one under
    ``teacher``, ``state_dict`` or ``model``. Tensor names may have the prefix ``backbone.``. Heads and classifiers are left
    out. If the file has no name of the network, tensors are assigned in their order, provided that all shapes and kinds
    match, and a caveat says so. timm interpolates the position embedding of a transformer.

    Raises:
        SettingsError: the image size does not suit the architecture.
        NotFoundError: the file does not exist.
        WeightsFileError: the file does not hold weights, or holds those of another architecture.
    """
    if weights is None and is_resnet(architecture.name):
        return Initialisation(architecture)  # ResNets take any image size
    backbone = _build(architecture, image_size)
    if weights is None:
        return Initialisation(architecture)
    return Initialisation(architecture, _load_file(weights, read_state(weights), architecture, backbone))


def _build(architecture: Architecture, image_size: int) -> Backbone:
    backbone = make_backbone(architecture.name, architecture.stem, architecture.image_size)
    require_image_size(architecture.name, backbone.network, backbone.dim, image_size)
    return backbone


def _load_published(
    published: Published, obtained: Obtained, architecture: Architecture, backbone: Backbone
) -> InitialWeights:
    loaded = _load_file(obtained.path, read_state(obtained.path), architecture, backbone)
    return InitialWeights(
        loaded.file,
        obtained.sha256,
        loaded.tensors,
        loaded.state,
        published.mean or loaded.mean,
        published.std or loaded.std,
        tuple(dict.fromkeys((*published.caveats, *loaded.caveats))),
        {
            "name": published.name,
            "source": str(published.source),
            "licence": published.licence,
            "sha256_checked": obtained.hash_from,
        },
    )


def _load_file(
    path: Path, tensors: dict[str, Tensor], architecture: Architecture, backbone: Backbone
) -> InitialWeights:
    if any(name.startswith("projector.") for name in tensors):
        # encoder.json records its training data, perhaps including instance labels. This record would be lost.
        raise WeightsFileError(
            f"{path} is an encoder of cytomil. Use its folder directly: cytomil embed --encoder FOLDER."
        )
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if any(name.startswith("backbone.") for name in tensors):
        tensors = {k.removeprefix("backbone."): v for k, v in tensors.items() if k.startswith("backbone.")}
    caveats = (DINOBLOOM_CAVEAT,) if _looks_like_dinobloom(path, tensors) else ()
    tensors = from_efficientnet_pytorch(tensors, backbone.network)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(backbone.classifiers)}
    wanted = backbone.network.state_dict()
    if ordered := by_order(tensors, wanted):
        given = ordered
        caveats = (*caveats, _BY_ORDER.format(file=path.name, architecture=architecture.name))
    else:
        given = _convert_for_timm(tensors, backbone)
    fitting = {name for name, tensor in wanted.items() if name in given and given[name].shape == tensor.shape}
    # Files of PyTorch before 0.4.1, such as the ResNets trained on ImageNet, have no batch counters.
    missing = [name for name in wanted if name not in fitting and not name.endswith("num_batches_tracked")]
    surplus = [name for name in given if name not in wanted]
    if missing or surplus:
        raise WeightsFileError(_mismatch(path, architecture, given, wanted, len(fitting), missing, surplus))
    state = wanted | {name: given[name].to(wanted[name].dtype) for name in fitting}
    broken = next((name for name in fitting if not torch.isfinite(state[name]).all()), None)
    if broken:
        raise WeightsFileError(
            f"{path}: {broken} is not finite. The file is damaged, or its training diverged. Use other weights."
        )
    return InitialWeights(path.name, sha256_of_file(path), len(fitting), state, backbone.mean, backbone.std, caveats)


def _convert_for_timm(tensors: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
    """Rename the tensors and interpolate the position embedding with timm's converter for the network, if there is one."""
    convert = getattr(sys.modules[type(backbone.network).__module__], "checkpoint_filter_fn", None)
    if backbone.library != "timm" or convert is None:
        return tensors
    try:
        return convert(tensors, backbone.network)
    except (RuntimeError, KeyError, ValueError, AttributeError, IndexError, AssertionError):
        return tensors  # the caller reports the mismatch


def _mismatch(
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
        in_file = f"{tuple(given[first].shape)} in the file" if first in given else "not in the file"
        reason = f"the first mismatch is {first}: {in_file}, {tuple(wanted[first].shape)} in the network"
    else:
        reason = f"but the file has {len(surplus)} more; the first is {surplus[0]}"
    small = architecture.stem == "small" and missing == ["conv1.weight"]
    remedy = (
        "They have ImageNet's first layers: use --stem standard, or an --image-size above 64."
        if small
        else "Set --arch to the architecture that they were trained with."
    )
    return f"{path} does not fit {architecture.name}: {n_fitting} of {len(wanted)} tensors match, {reason}. {remedy}"


def _looks_like_dinobloom(path: Path, tensors: dict[str, Tensor]) -> bool:
    """Whether the name or the shape is DinoBloom's: DINOv2 with patch 14, trained at 224 px. Meta trained at 518 px."""
    position = tensors.get("pos_embed")
    shape = "mask_token" in tensors and position is not None and position.shape[1:2] == (_DINOBLOOM_TOKENS,)
    return shape or "dinobloom" in path.name.lower()
