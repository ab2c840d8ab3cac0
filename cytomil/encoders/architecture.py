"""The encoder: a ResNet-18 that gives the embedding h, and a projector that gives the projection z."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

SMALL_STEM_UP_TO = 64


@dataclass(frozen=True)
class Architecture:
    """What an encoder is built from. ``stem`` is ``standard`` (ImageNet's) or ``small`` (for small images)."""

    name: str = "resnet18"
    stem: str = "small"
    projection_dim: int = 128


def resolve_stem(stem: str, image_size: int) -> str:
    """``auto`` becomes ``small`` up to 64 pixels: ImageNet's stem would leave a single position of a 32-pixel cell."""
    if stem != "auto":
        return stem
    return "small" if image_size <= SMALL_STEM_UP_TO else "standard"


class Encoder(nn.Module):
    """Pixels to (h, z).

    ``forward`` takes pixels in 0 to 1, shape (N, 3, S, S), and returns h, shape (N, 512), and z, shape
    (N, projection_dim). Channel mean and standard deviation are part of the module and of its weights file.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        backbone = resnet18(weights=None)
        self.embedding_dim = backbone.fc.in_features
        backbone.fc = nn.Identity()
        if architecture.stem == "small":
            backbone.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=2, padding=1, bias=False)
            nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
            backbone.maxpool = nn.Identity()
        self.backbone = backbone
        self.projector = nn.Sequential(
            nn.Linear(self.embedding_dim, self.embedding_dim),
            nn.ReLU(inplace=True),
            nn.Linear(self.embedding_dim, architecture.projection_dim),
        )
        self.architecture = architecture
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5))
        self.register_buffer("std", torch.full((1, 3, 1, 1), 0.25))

    def dim_of(self, layer: str) -> int:
        """Length of ``layer``, h or z."""
        return self.embedding_dim if layer == "h" else self.architecture.projection_dim

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (N, 3, S, S) in 0 to 1 → h (N, 512), z (N, projection_dim)."""
        h = self.backbone((pixels - self.mean) / self.std)
        return h, self.projector(h)
