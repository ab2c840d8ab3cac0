"""The early stages of a network: which of its parameters stay as they came when training goes on from others' weights."""

from __future__ import annotations

import torch
from torch import nn

from cytomil.encoders.architecture import Architecture, Encoder
from cytomil.encoders.backbones import stage_of_parameters
from cytomil.encoders.stages import Layers
from cytomil.errors import SettingsError
from cytomil.layer import Layer

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
