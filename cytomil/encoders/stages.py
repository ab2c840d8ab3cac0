"""Layer ``multi``: what every stage of a ResNet sees of a cell, beside h and z.

Training brings the last layers to what its loss asks for; how dark, coarse or large a cell is stands in the stages before.
Taken over the whole cell, as mean, spread and maximum of each map, that tells an odd cell from the usual ones where h and z
alone do not (PaDiM, arXiv 2011.08785, joins stages so, place by place). docs/research-log.md has what was measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cytomil.encoders.backbones import is_resnet
from cytomil.errors import SettingsError

if TYPE_CHECKING:
    from cytomil.encoders.architecture import Encoder

MULTI = "multi"
_INNER = ("layer1", "layer2", "layer3")


def multi_dim(encoder: Encoder) -> int:
    """Length of layer ``multi``. Raises `SettingsError` for an encoder that is no ResNet."""
    _require_stages(encoder)
    return encoder.dim_of("h") + encoder.dim_of("z") + 3 * sum(map(_width, _inner(encoder)))


def embed_multi(encoder: Encoder, pixels: Tensor) -> Tensor:
    """Pixels (N, 3, S, S) in 0 to 1 → (N, `multi_dim`): mean, spread and maximum of each inner stage's
    maps, then h, then z.

    Raises `SettingsError` for an encoder that is no ResNet.
    """
    _require_stages(encoder)
    seen: list[Tensor] = []

    def see(_stage: nn.Module, _given: object, maps: Tensor) -> None:
        places = maps.flatten(2)
        seen.extend((places.mean(dim=2), places.std(dim=2, correction=0), places.amax(dim=2)))

    hooks = [stage.register_forward_hook(see) for stage in _inner(encoder)]
    try:
        h, z = encoder(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat([*seen, h, z], dim=1)


def _inner(encoder: Encoder) -> list[nn.Module]:
    return [encoder.backbone.get_submodule(name) for name in _INNER]


def _width(stage: nn.Module) -> int:
    last = list(stage.children())[-1]
    return int((last.conv3 if hasattr(last, "conv3") else last.conv2).out_channels)  # type: ignore[union-attr,arg-type]


def _require_stages(encoder: Encoder) -> None:
    name = encoder.architecture.name
    if not is_resnet(name):
        raise SettingsError(f"layer multi is for resnet18 and resnet50; {name} has other stages. Use --layer h.")
