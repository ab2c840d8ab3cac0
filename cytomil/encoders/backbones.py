"""The networks under the projector: torchvision's ResNets, and whatever timm has under a name."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchvision.models import resnet18, resnet50

from cytomil.errors import SettingsError

_RESNETS = {"resnet18": resnet18, "resnet50": resnet50}
# What torchvision's ImageNet weights were trained with.
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Backbone:
    """A network without its classifier, pixels (N, 3, S, S) → (N, ``dim``), its weights drawn at random.

    ``mean`` and ``std`` are the channels' that its published weights were trained with; ``classifiers`` are the prefixes
    of the layers that were left out; ``library`` is what it comes from.
    """

    network: nn.Module
    dim: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classifiers: tuple[str, ...]
    library: str


def is_resnet(name: str) -> bool:
    """Whether torchvision brings this architecture, so that it may have the small stem and takes any image size."""
    return name in _RESNETS


def wants_image_size(name: str) -> bool:
    """Whether the network is built for one image size, as a vision transformer is.

    Raises `SettingsError` for a name that nobody has.
    """
    return not is_resnet(name) and bool(_timm_facts(name).fixed_input_size)


def make_backbone(name: str, stem: str = "standard", image_size: int | None = None) -> Backbone:
    """Build a network by name. ``stem`` is for ResNets alone, ``image_size`` for networks that `wants_image_size`.

    Raises `SettingsError` for a name that nobody has, or a size the network cannot be built for.
    """
    return _resnet(name, stem) if is_resnet(name) else _from_timm(name, image_size)


def require_image_size(name: str, network: nn.Module, dim: int, image_size: int) -> None:
    """Raise `SettingsError` unless the network gives ``dim`` numbers for a cell of ``image_size`` pixels; it is run once."""
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    side = patch[0] if isinstance(patch, tuple) else patch
    if isinstance(side, int) and image_size % side:
        below = max(side, image_size // side * side)
        # A patch that does not fit whole would be cut off in silence.
        raise SettingsError(
            f"{name} cuts cells into patches of {side} px, and {image_size} px is no multiple of it. "
            f"Use --image-size {below} or {below + side}; {_trained_at(name)}."
        )
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            shape = tuple(network(torch.zeros(2, 3, image_size, image_size)).shape)
    except (RuntimeError, AssertionError, ValueError, IndexError, AttributeError) as error:
        raise SettingsError(
            f"{name} does not run on cells of {image_size} px ({_first_line(error)}). "
            f"Use another --image-size; {_trained_at(name)}."
        ) from None
    finally:
        network.train(was_training)
    if shape != (2, dim):
        raise SettingsError(
            f"{name} gives shape {shape[1:]} for a cell, not one embedding of {dim}. Use another --arch."
        )


def stage_of_parameters(name: str, network: nn.Module) -> dict[str, int]:
    """Names of the network's parameters → their stage, counted from 1; 0 is the stem. Empty where stages are not known."""
    parameters = [parameter for parameter, _ in network.named_parameters()]
    if is_resnet(name):
        firsts = [parameter.split(".")[0] for parameter in parameters]
        numbers = [int(first.removeprefix("layer")) if first.startswith("layer") else 0 for first in firsts]
        return dict(zip(parameters, numbers, strict=True))
    group_matcher = getattr(network, "group_matcher", None)
    if group_matcher is None:
        return {}
    from timm.models import group_parameters

    groups = group_parameters(network, group_matcher(coarse=True), reverse=True)
    return {parameter: int(groups[parameter]) for parameter in parameters}


def _resnet(name: str, stem: str) -> Backbone:
    network = _RESNETS[name](weights=None)
    dim = network.fc.in_features
    network.fc = nn.Identity()
    if stem == "small":
        network.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=2, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    return Backbone(network, dim, _IMAGENET_MEAN, _IMAGENET_STD, ("fc.",), "torchvision")


def _from_timm(name: str, image_size: int | None) -> Backbone:
    facts = _timm_facts(name)
    import timm

    sized: dict[str, Any] = {"img_size": image_size} if image_size and facts.fixed_input_size else {}
    try:
        # pretrained=False: weights come by `cytomil.encoders.start` alone.
        network: Any = timm.create_model(name, pretrained=False, num_classes=0, **sized)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise SettingsError(
            f"timm cannot build {name} for cells of {image_size} px ({_first_line(error)}). "
            f"Use another --image-size; {_trained_at(name)}."
        ) from None
    dim = getattr(network, "head_hidden_size", None) or network.num_features
    classifier = facts.classifier or ()
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return Backbone(network, dim, facts.mean, facts.std, tuple(f"{one}." for one in names), "timm")


def _timm_facts(name: str) -> Any:
    import timm

    # timm would take a name that begins with hf-hub: for a place to download from.
    facts = timm.get_pretrained_cfg(name.partition(".")[0]) if timm.is_model(name) and ":" not in name else None
    if facts is None:
        near = difflib.get_close_matches(name, [*_RESNETS, *timm.list_models()], n=1)
        meant = f" Did you mean '{near[0]}'?" if near else ""
        raise SettingsError(
            f"there is no arch '{name}'. There are {', '.join(_RESNETS)}, and what timm.list_models() shows.{meant}"
        )
    return facts


def _trained_at(name: str) -> str:
    if is_resnet(name):
        return "its published weights were trained at 224"
    return f"its published weights were trained at {_timm_facts(name).input_size[-1]}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__
