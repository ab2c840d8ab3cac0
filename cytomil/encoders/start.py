"""What an encoder starts from: an architecture, and weights that others have trained, by name or from a local file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cytomil.encoders.architecture import Architecture, Encoder, resolve_architecture
from cytomil.encoders.backbones import Backbone, is_resnet, make_backbone, require_image_size
from cytomil.encoders.obtain import Obtained, by_order, from_efficientnet_pytorch, obtain, read_state
from cytomil.encoders.published import DINOBLOOM_SAW, NONE, Published, find_published, is_published, refuse_unknown
from cytomil.errors import SettingsError, WeightsFileError
from cytomil.files import sha256_of_file

AUTO = "auto"
_WITHOUT_WEIGHTS = "resnet18"
_BY_ORDER = (
    "The names in {file} are not {architecture}'s: its tensors were taken in the file's order, as all shapes and kinds agree. "
    "Make sure that they are {architecture}'s weights."
)
_DINOBLOOM_TOKENS = 1 + (224 // 14) ** 2


@dataclass(frozen=True)
class StartWeights:
    """Weights that fit a backbone exactly: ``state`` is its whole state. ``mean`` and ``std`` are those they go with.

    ``tensors`` came from ``file``; ``published`` is what is known of weights that have a name; ``caveats`` are what a reader
    of figures must know of them, in whole sentences.
    """

    file: str
    sha256: str
    tensors: int
    state: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    caveats: tuple[str, ...]
    published: dict[str, str] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """What encoder.json says of them."""
        return {"file": self.file, "sha256": self.sha256, "tensors": self.tensors, **self.published}

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


def resolve_start(
    weights: str,
    arch: str,
    stem: str,
    image_size: int,
    projection_dim: int,
    projector: str = "plain",
    note: Callable[[str], None] = lambda _: None,
) -> Start:
    """The architecture and the weights that these settings ask for.

    ``weights`` is ``none``, a published name (see `cytomil.encoders.published`) or a file; ``arch`` ``auto`` is the named
    weights' own architecture, else resnet18. ``note`` is told before anything is downloaded. Raises as `prepare_start`
    does, and `SettingsError` for a name that nobody has or an architecture that is not the named weights'.
    """
    if weights == NONE or not is_published(weights):
        path = None if weights == NONE else Path(weights)
        if path and not path.exists() and not path.suffix and len(path.parts) == 1:
            refuse_unknown(weights)
        name = _WITHOUT_WEIGHTS if arch == AUTO else arch
        architecture = resolve_architecture(name, stem, projection_dim, image_size, projector)
        return prepare_start(architecture, image_size, path)
    published = find_published(weights)
    if arch not in (AUTO, published.architecture):
        raise SettingsError(
            f"--weights {weights} are {published.architecture}'s, not {arch}'s. Leave out --arch, or use --weights none "
            f"(random ones) or a file of {arch}'s."
        )
    if is_resnet(published.architecture) and stem == AUTO:
        stem = "standard"  # the first layers that the weights have, whatever the image size
    architecture = resolve_architecture(published.architecture, stem, projection_dim, image_size, projector)
    backbone = _tried(architecture, image_size)
    return Start(architecture, _named(published, obtain(published, note), architecture, backbone))


def prepare_start(architecture: Architecture, image_size: int, weights: Path | None = None) -> Start:
    """Read the start weights, if any, and try the architecture on this image size, before hours are spent on it.

    Takes ImageNet weights as torchvision ships them, timm's, EfficientNet-PyTorch's, and DINO's and DINOv2's (DinoBloom's):
    a state dict, or one under ``teacher``, ``state_dict`` or ``model``, its tensors with or without ``backbone.`` before
    their names; heads and classifiers are left out. Where no name is the network's, tensors are taken in their order if
    all shapes and kinds agree, and a caveat says so. A transformer's position embedding is interpolated by timm.

    Raises:
        SettingsError: the image size does not suit the architecture.
        NotFoundError, WeightsFileError: the file is not there, not weights, or those of another architecture.
    """
    if weights is None and is_resnet(architecture.name):
        return Start(architecture)  # it takes any image size
    backbone = _tried(architecture, image_size)
    if weights is None:
        return Start(architecture)
    return Start(architecture, _fitted(weights, read_state(weights), architecture, backbone))


def _tried(architecture: Architecture, image_size: int) -> Backbone:
    backbone = make_backbone(architecture.name, architecture.stem, architecture.image_size)
    require_image_size(architecture.name, backbone.network, backbone.dim, image_size)
    return backbone


def _named(published: Published, obtained: Obtained, architecture: Architecture, backbone: Backbone) -> StartWeights:
    fitted = _fitted(obtained.path, read_state(obtained.path), architecture, backbone)
    return StartWeights(
        fitted.file,
        obtained.sha256,
        fitted.tensors,
        fitted.state,
        published.mean or fitted.mean,
        published.std or fitted.std,
        tuple(dict.fromkeys((*published.caveats, *fitted.caveats))),
        {
            "name": published.name,
            "source": str(published.source),
            "licence": published.licence,
            "sha256_checked": obtained.hash_from,
        },
    )


def _fitted(path: Path, tensors: dict[str, Tensor], architecture: Architecture, backbone: Backbone) -> StartWeights:
    if any(name.startswith("projector.") for name in tensors):
        # What its training saw, instance labels perhaps, stands in its encoder.json and would be lost on the way.
        raise WeightsFileError(
            f"{path} is an encoder of cytomil's. Use its folder as it is: cytomil embed --encoder FOLDER."
        )
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if any(name.startswith("backbone.") for name in tensors):
        tensors = {k.removeprefix("backbone."): v for k, v in tensors.items() if k.startswith("backbone.")}
    caveats = (DINOBLOOM_SAW,) if _looks_like_dinobloom(path, tensors) else ()
    tensors = from_efficientnet_pytorch(tensors, backbone.network)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(backbone.classifiers)}
    wanted = backbone.network.state_dict()
    if ordered := by_order(tensors, wanted):
        given = ordered
        caveats = (*caveats, _BY_ORDER.format(file=path.name, architecture=architecture.name))
    else:
        given = _as_timm_has_them(tensors, backbone)
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
