"""The layers of an encoder: h, z, and statistics of inner stages of its network.

The last layers represent what the training loss requires. Earlier stages also represent how dark, coarse or large a cell
is. The mean, maximum and spread of each channel over the whole cell therefore reveal unusual cells that h and z alone
miss. PaDiM (arXiv 2011.08785) combines stages in the same way, per position. docs/log/research-log.md has the
measurements.

The stages of a ResNet are numbered as in torchvision (layer1 is 1). Others are numbered as in timm's
`forward_intermediates`: the blocks of a transformer, the stages of a convolutional network. The stages of EfficientNets
and related networks are all of their ``blocks``.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from cytomil.encoders.architecture import Architecture, Encoder, is_resnet, stage_of_parameters
from cytomil.errors import SettingsError
from cytomil.layer import Layer, resolve_layer

_PROBED_PX = 64
_OF_EFFICIENTNETS = (1, 4, 5, 6)
_DEFAULT_STAGES = 3


def stages_of(encoder: Encoder) -> tuple[int, ...]:
    """The numbers of the available stages of ``encoder``; empty if its library provides none."""
    network: Any = encoder.backbone
    if is_resnet(encoder.architecture.name):
        return (1, 2, 3, 4)
    if not hasattr(network, "forward_intermediates"):
        return ()
    return tuple(range(len(network.blocks) if _has_block_stages(network) else len(network.feature_info)))


def default_layer(encoder: Encoder) -> Layer:
    """The layer that is embedded by default.

    For EfficientNets and related networks, it consists of stages 1, 4, 5 and 6. For others, it consists of the three
    stages before the last one. It is h if there are no stages.
    """
    numbers = stages_of(encoder)
    if _has_block_stages(encoder.backbone) and max(_OF_EFFICIENTNETS) in numbers:
        return Layer.of_stages(_OF_EFFICIENTNETS)
    inner = numbers[:-1][-_DEFAULT_STAGES:]
    return Layer.of_stages(inner) if inner else Layer("h")


def layer_of(text: str, encoder: Encoder) -> Layer:
    """The layer of ``encoder`` for the setting ``text``, see `cytomil.layer`.

    Raises:
        SettingsError: ``text`` is not a layer, or the encoder has no such stage.
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
        available = f"stages {numbers[0]} to {numbers[-1]}" if numbers else "no inner stages"
        raise SettingsError(
            f"layer {layer}: {name} has no stage {missing[0]}; it has {available}. Use another --layer."
        )


def layer_dim(encoder: Encoder, layer: Layer) -> int:
    """Length of ``layer`` of ``encoder``. Raises `SettingsError` if the encoder has no such stage."""
    return sum(layer_groups(encoder, layer))


def layer_groups(encoder: Encoder, layer: Layer) -> tuple[int, ...]:
    """Number of values per stage of the layer, in their order; a single number for a layer without stages.

    Raises:
        SettingsError: ``encoder`` has no such stage.
    """
    if not layer.stages:
        return (encoder.dim_of(layer.kind),)
    require_layer(layer, encoder)
    network: Any = encoder.backbone
    if is_resnet(encoder.architecture.name) or _has_block_stages(network):
        # These networks take any image size, and do not list the number of channels per stage.
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
    """The part of an encoder that computes the given layers. Engines run and compile this module.

    ``forward`` takes pixels (N, 3, S, S) in 0 to 1 and returns one tensor (N, `layer_dim`) per layer, in the given order.
    A layer of stages concatenates the statistics of the first stage, then those of the next.

    Raises:
        SettingsError: the encoder has no such stage.
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
        """Pixels (N, 3, S, S) → one tensor (N, D) per layer."""
        encoder = self.encoder
        normalised = (pixels - encoder.mean) / encoder.std
        h: Tensor | None = None
        statistics: dict[tuple[int, str], Tensor] = {}
        if self._inner is None:
            h = encoder.backbone(normalised)
        else:
            h, maps = self._inner(normalised)
            for number, values in zip(self._stages, maps, strict=True):
                statistics |= {(number, name): value for name, value in self._pooled(number, values).items()}
        return tuple(
            torch.cat([statistics[number, name] for number in layer.stages for name in layer.statistics], dim=1)
            if layer.stages
            else _projected(encoder, layer, h)
            for layer in self._layers
        )

    def _pooled(self, number: int, maps: Tensor) -> dict[str, Tensor]:
        """Maps (N, C, H, W) → the statistics of this stage that the layers need, (N, C) each."""
        names = {name for layer in self._layers if number in layer.stages for name in layer.statistics}
        positions = maps.flatten(2)
        statistics = {}
        if "max" in names:
            statistics["max"] = positions.amax(dim=2)
        if names & {"mean", "spread"}:
            mean = positions.mean(dim=2, keepdim=True)
            statistics["mean"] = mean.flatten(1)
            if "spread" in names:
                # Computed explicitly, because ncnn has no standard deviation.
                statistics["spread"] = (positions - mean).square().mean(dim=2).sqrt()
        return statistics


def _projected(encoder: Encoder, layer: Layer, h: Tensor | None) -> Tensor:
    assert h is not None
    if layer.kind == "h":
        return h
    projected: Tensor = encoder.standardise(encoder.projector(h))
    return projected


class _InnerMaps:
    """Normalised pixels → h if needed, and each stage's maps (N, C, H, W). Layers after the last stage are skipped.

    This is not a module. If it were, converters would find the encoder's layers under two names, and pnnx would lose
    their weights.
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
            network.train(was_training)  # creating the graph has changed the mode of the shared layers
            return
        self._network = network
        self._options: dict[str, Any] = {"indices": list(stages)}
        if _has_block_stages(network):
            # Index 0 is the stem.
            self._options = {"indices": [number + 1 for number in stages], "extra_blocks": True}

    def __call__(self, normalised: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        if self._graph is not None:
            outputs = self._graph(normalised)
            return outputs.get("h"), [outputs[str(number)] for number in self._stages]
        if not self._with_h:
            return None, self._network.forward_intermediates(
                normalised, **self._options, stop_early=True, intermediates_only=True
            )
        final, maps = self._network.forward_intermediates(normalised, **self._options)
        return self._network.forward_head(final), maps


def _has_block_stages(network: Any) -> bool:
    """Whether timm can return all blocks of this network as stages, instead of one stage per resolution."""
    method = getattr(network, "forward_intermediates", None)
    return method is not None and "extra_blocks" in inspect.signature(method).parameters


_TRAINED_STAGES = 2


def default_frozen_stages(encoder: Encoder) -> int:
    """The default of ``frozen_stages``: all stages but the last two; 0 if the network's stages are not known."""
    return max(
        0, max(stage_of_parameters(encoder.architecture.name, encoder.backbone).values(), default=0) - _TRAINED_STAGES
    )


def early_parameters(encoder: Encoder, stages: int) -> list[nn.Parameter]:
    """The backbone's parameters in the stem and the first ``stages`` stages; none if ``stages`` is 0.

    Stages are torchvision's for a ResNet (layer1 is the first). For others, they are timm's groups for a learning rate per
    stage: the ``blocks`` of an EfficientNet, the blocks of a transformer.

    Raises:
        SettingsError: no stage would be left, or the network's stages are not known.
    """
    if not stages:
        return []
    numbers = stage_of_parameters(encoder.architecture.name, encoder.backbone)
    name = encoder.architecture.name
    if not numbers:
        raise SettingsError(f"the stages of {name} are not known. Use --frozen-stages 0.")
    if stages >= (last := max(numbers.values())):
        raise SettingsError(
            f"--frozen-stages {stages} freezes all stages of {name}. Use {last - 1} or fewer, or --method none."
        )
    return [parameter for name, parameter in encoder.backbone.named_parameters() if numbers[name] <= stages]


def layer_is_frozen(architecture: Architecture, image_size: int, stages: int, layer: Layer) -> bool:
    """Whether freezing the first ``stages`` stages leaves ``layer`` unchanged by training.

    Raises:
        SettingsError: see `early_parameters`.
    """
    # On the meta device nothing is drawn or computed, but autograd still tracks which outputs have a gradient.
    with torch.device("meta"), torch.enable_grad():
        encoder = Encoder(architecture).eval()
        for parameter in early_parameters(encoder, stages):
            parameter.requires_grad_(False)
        (values,) = Layers(encoder, (layer,))(torch.zeros(1, 3, image_size, image_size))
    return not values.requires_grad
