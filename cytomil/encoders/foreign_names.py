"""Tensors under other names than the network's: EfficientNet-PyTorch's by a stated mapping, others by order and shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

# EfficientNet-PyTorch's names of what stands outside the blocks, and timm's.
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# And inside: a block that does not expand its channels begins with the depthwise convolution.
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

# What TensorFlow and others call a layer's tensors.
_KINDS = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_COUNTER = "num_batches_tracked"


def from_efficientnet_pytorch(tensors: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The tensors under timm's names where they are EfficientNet-PyTorch's of such a network, else as they are.

    Its blocks are numbered through; timm's are counted anew in each stage.
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
    """The tensors under the network's names, taken in the file's order; None where that is not sure.

    It is sure where not one name is the network's, all shapes agree one by one, each tensor's kind (weight, bias, running mean
    or variance) is what stands there in the network, and nothing is left over but a classifier at the end. Counters of
    batches do not count.
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
