"""Layer ``multi``: what every stage of a ResNet sees of a cell, beside h and z.

Training brings the last layers to what its loss asks for; how dark, coarse or large a cell is stands in the stages before.
Taken over the whole cell, as mean, spread and maximum of each map, that tells an odd cell from the usual ones where h and z
alone do not (PaDiM, arXiv 2011.08785, joins stages so, place by place). docs/research-log.md has what was measured.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cytomil.encoders.architecture import Encoder
from cytomil.encoders.backbones import is_resnet
from cytomil.errors import SettingsError

MULTI = "multi"
_STEM = ("conv1", "bn1", "relu", "maxpool")
_INNER = ("layer1", "layer2", "layer3")


def layers_of(encoder: Encoder) -> tuple[str, ...]:
    """The layers that can be had of ``encoder``, the one that tells most last: h, z, and ``multi`` of a ResNet."""
    return ("h", "z", MULTI) if is_resnet(encoder.architecture.name) else ("h", "z")


def layer_dim(encoder: Encoder, layer: str) -> int:
    """Length of h, z or multi. Raises `SettingsError` for multi of an encoder that is no ResNet."""
    if layer != MULTI:
        return encoder.dim_of(layer)
    name = encoder.architecture.name
    if MULTI not in layers_of(encoder):
        raise SettingsError(f"layer multi is for resnet18 and resnet50; {name} has other stages. Use --layer h.")
    widths = (_width(encoder.backbone.get_submodule(stage)) for stage in _INNER)
    return encoder.dim_of("h") + encoder.dim_of("z") + 3 * sum(widths)


class AllLayers(nn.Module):
    """An encoder that gives all of its `layers_of` at once: what engines are compiled from.

    ``forward`` takes pixels (N, 3, S, S) in 0 to 1. ``multi``, shape (N, `layer_dim`), is mean, spread and maximum of each
    inner stage's maps, then h, then z.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Pixels (N, 3, S, S) → one (N, D) each."""
        encoder = self.encoder
        if MULTI not in layers_of(encoder):
            return tuple(encoder(pixels))
        part = encoder.backbone.get_submodule
        maps = (pixels - encoder.mean) / encoder.std
        for name in _STEM:
            maps = part(name)(maps)
        seen: list[Tensor] = []
        for name in _INNER:
            maps = part(name)(maps)
            places = maps.flatten(2)
            mean = places.mean(dim=2, keepdim=True)
            # Written out, because ncnn knows no standard deviation.
            spread = (places - mean).square().mean(dim=2).sqrt()
            seen.extend((mean.flatten(1), spread, places.amax(dim=2)))
        h = part("avgpool")(part("layer4")(maps)).flatten(1)
        z = encoder.standardise(encoder.projector(h))
        return h, z, torch.cat([*seen, h, z], dim=1)


def _width(stage: nn.Module) -> int:
    last = list(stage.children())[-1]
    return int((last.conv3 if hasattr(last, "conv3") else last.conv2).out_channels)  # type: ignore[union-attr,arg-type]
