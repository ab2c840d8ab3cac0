"""An encoder's layers: h, z, and what inner stages of its network see of a cell.

Training brings the last layers to what its loss asks for; how dark, coarse or large a cell is stands in the stages before.
Taken over the whole cell, as mean, maximum and spread of each channel, that tells an odd cell from the usual ones where h and
z alone do not (PaDiM, arXiv 2011.08785, joins stages so, place by place). docs/log/research-log.md has what was measured.

A stage's number is torchvision's for a ResNet (layer1 is 1), else that of timm's `forward_intermediates`: the blocks of a
transformer, the stages of a convolutional network. The stages of an EfficientNet and its kin are its ``blocks``, all of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from cytomil.encoders.architecture import Architecture, Encoder
from cytomil.encoders.backbones import is_resnet, stage_of_parameters
from cytomil.errors import SettingsError
from cytomil.layer import Layer, resolve_layer

_PROBED_PX = 64
_OF_EFFICIENTNETS = (1, 4, 5, 6)
_DEFAULT_STAGES = 3


def stages_of(encoder: Encoder) -> tuple[int, ...]:
    """The numbers of the stages that can be had of ``encoder``; empty where neither library gives any."""
    network: Any = encoder.backbone
    if is_resnet(encoder.architecture.name):
        return (1, 2, 3, 4)
    if not hasattr(network, "forward_intermediates"):
        return ()
    return tuple(range(len(network.blocks) if _has_block_stages(network) else len(network.feature_info)))


def default_layer(encoder: Encoder) -> Layer:
    """The layer that is kept unless another is asked for.

    Stages 1, 4, 5 and 6 of an EfficientNet and its kin, of others the three before the last one; h where there are none.
    """
    numbers = stages_of(encoder)
    if _has_block_stages(encoder.backbone) and max(_OF_EFFICIENTNETS) in numbers:
        return Layer.of_stages(_OF_EFFICIENTNETS)
    inner = numbers[:-1][-_DEFAULT_STAGES:]
    return Layer.of_stages(inner) if inner else Layer("h")


def layer_of(text: str, encoder: Encoder) -> Layer:
    """The layer that a setting asks for of ``encoder``; see `cytomil.layer`.

    Raises `SettingsError` for what is no layer, or a stage that it has not.
    """
    try:
        layer = resolve_layer(text, lambda: default_layer(encoder))
    except ValueError as error:
        raise SettingsError(f"{error}.") from None
    require_layer(layer, encoder)
    return layer


def require_layer(layer: Layer, encoder: Encoder) -> None:
    """Raise `SettingsError` unless ``encoder`` has the layer's stages."""
    numbers = stages_of(encoder)
    if missing := [number for number in layer.stages if number not in numbers]:
        name = encoder.architecture.name
        there = f"stages {numbers[0]} to {numbers[-1]}" if numbers else "no inner stages that can be had"
        raise SettingsError(f"layer {layer}: {name} has no stage {missing[0]}; it has {there}. Use another --layer.")


def layer_dim(encoder: Encoder, layer: Layer) -> int:
    """How many numbers ``encoder`` gives for ``layer``. Raises `SettingsError` for stages that it has not."""
    return sum(layer_groups(encoder, layer))


def layer_groups(encoder: Encoder, layer: Layer) -> tuple[int, ...]:
    """How many of these numbers each of the layer's stages gives, in their order; one group where it has none.

    Raises `SettingsError` for stages that ``encoder`` has not.
    """
    if not layer.stages:
        return (encoder.dim_of(layer.kind),)
    require_layer(layer, encoder)
    network: Any = encoder.backbone
    if is_resnet(encoder.architecture.name) or _has_block_stages(network):
        # They take any image size, and say nowhere how many channels each stage has.
        side = _PROBED_PX
        was_training = network.training
        network.eval()
        with torch.no_grad():
            maps = _InnerMaps(encoder, layer.stages, with_h=False)(torch.zeros(1, 3, side, side).to(encoder.mean))[1]
        network.train(was_training)
        channels = [int(one.shape[1]) for one in maps]
    else:
        channels = [int(network.feature_info[number]["num_chs"]) for number in layer.stages]
    return tuple(len(layer.statistics) * one for one in channels)


class Layers(nn.Module):
    """An encoder that gives the layers asked for and computes no more than they need: what engines run and compile.

    ``forward`` takes pixels (N, 3, S, S) in 0 to 1 and returns one (N, `layer_dim`) for each layer, in the order asked. A
    layer of stages is, stage by stage, one statistic after another. Raises `SettingsError` for a stage that it has not.
    """

    def __init__(self, encoder: Encoder, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.encoder = encoder
        self._layers = tuple(layers)
        for layer in self._layers:
            require_layer(layer, encoder)
        self._stages = tuple(sorted({number for layer in self._layers for number in layer.stages}))
        self._with_h = any(not layer.stages for layer in self._layers)
        self._inner = _InnerMaps(encoder, self._stages, self._with_h) if self._stages else None

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Pixels (N, 3, S, S) → one (N, D) each."""
        encoder = self.encoder
        normalised = (pixels - encoder.mean) / encoder.std
        h: Tensor | None = None
        statistics: dict[tuple[int, str], Tensor] = {}
        if self._inner is None:
            h = encoder.backbone(normalised)
        else:
            h, maps = self._inner(normalised)
            for number, values in zip(self._stages, maps, strict=True):
                statistics |= {(number, name): value for name, value in self._over_places(number, values).items()}
        return tuple(
            torch.cat([statistics[number, name] for number in layer.stages for name in layer.statistics], dim=1)
            if layer.stages
            else _projected(encoder, layer, h)
            for layer in self._layers
        )

    def _over_places(self, number: int, maps: Tensor) -> dict[str, Tensor]:
        """Maps (N, C, H, W) → the statistics that any layer asks of this stage, (N, C) each."""
        wanted = {name for layer in self._layers if number in layer.stages for name in layer.statistics}
        places = maps.flatten(2)
        found = {}
        if "max" in wanted:
            found["max"] = places.amax(dim=2)
        if wanted & {"mean", "spread"}:
            mean = places.mean(dim=2, keepdim=True)
            found["mean"] = mean.flatten(1)
            if "spread" in wanted:
                # Written out, because ncnn knows no standard deviation.
                found["spread"] = (places - mean).square().mean(dim=2).sqrt()
        return found


def _projected(encoder: Encoder, layer: Layer, h: Tensor | None) -> Tensor:
    assert h is not None
    if layer.kind == "h":
        return h
    projected: Tensor = encoder.standardise(encoder.projector(h))
    return projected


class _InnerMaps:
    """Normalised pixels → h, if asked for, and each stage's maps (N, C, H, W); what lies behind the last one is left out.

    No module of its own: converters would meet the encoder's layers under two names, and pnnx then loses their weights.
    """

    def __init__(self, encoder: Encoder, stages: tuple[int, ...], with_h: bool) -> None:
        network: Any = encoder.backbone
        self._with_h = with_h
        self._stages = stages
        self._graph: nn.Module | None = None
        if is_resnet(encoder.architecture.name):
            last = get_graph_node_names(network)[1][-1]
            names = {f"layer{number}": str(number) for number in stages} | ({last: "h"} if with_h else {})
            was_training = network.training
            self._graph = create_feature_extractor(network, names)
            network.train(was_training)  # whose layers the graph shares, and has put into a mode of its own
            return
        self._network = network
        self._options: dict[str, Any] = {"indices": list(stages)}
        if _has_block_stages(network):
            # Place 0 is the stem.
            self._options = {"indices": [number + 1 for number in stages], "extra_blocks": True}

    def __call__(self, normalised: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        if self._graph is not None:
            found = self._graph(normalised)
            return found.get("h"), [found[str(number)] for number in self._stages]
        if not self._with_h:
            return None, self._network.forward_intermediates(
                normalised, **self._options, stop_early=True, intermediates_only=True
            )
        final, maps = self._network.forward_intermediates(normalised, **self._options)
        return self._network.forward_head(final), maps


def _has_block_stages(network: Any) -> bool:
    """Whether timm counts this network's stages by resolution, and gives all of its blocks' if asked for."""
    method = getattr(network, "forward_intermediates", None)
    return method is not None and "extra_blocks" in inspect.signature(method).parameters


_TRAINED_STAGES = 2


def usual_frozen_stages(encoder: Encoder) -> int:
    """All stages but the last two; 0 where the network's stages are not known."""
    return max(
        0, max(stage_of_parameters(encoder.architecture.name, encoder.backbone).values(), default=0) - _TRAINED_STAGES
    )


def early_parameters(encoder: Encoder, stages: int) -> list[nn.Parameter]:
    """The backbone's parameters of the stem and the first ``stages`` stages; none for 0.

    Stages are torchvision's for a ResNet (layer1 is the first), else the groups that timm forms for a learning rate a
    stage: the ``blocks`` of an EfficientNet, the blocks of a transformer.

    Raises:
        SettingsError: the network has no more stages than that, or they are not known.
    """
    if not stages:
        return []
    numbers = stage_of_parameters(encoder.architecture.name, encoder.backbone)
    name = encoder.architecture.name
    if not numbers:
        raise SettingsError(f"the stages of {name} are not known. Use --frozen-stages 0.")
    if stages >= (last := max(numbers.values())):
        raise SettingsError(
            f"--frozen-stages {stages} leaves nothing of {name} to train. Use {last - 1} or fewer, or --method none."
        )
    return [parameter for name, parameter in encoder.backbone.named_parameters() if numbers[name] <= stages]


def frozen_stages_leave_it(architecture: Architecture, image_size: int, stages: int, layer: Layer) -> bool:
    """Whether a layer is the same whatever is trained behind the first ``stages`` stages. Raises as `early_parameters`."""
    # On the meta device nothing is drawn or computed; what a gradient would reach is known all the same.
    with torch.device("meta"), torch.enable_grad():
        encoder = Encoder(architecture).eval()
        for parameter in early_parameters(encoder, stages):
            parameter.requires_grad_(False)
        (values,) = Layers(encoder, (layer,))(torch.zeros(1, 3, image_size, image_size))
    return not values.requires_grad
