"""The encoder: a backbone that gives the embedding h, and a projector that gives the projection z."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from cytomil.encoders.backbones import is_resnet, make_backbone, wants_image_size
from cytomil.errors import SettingsError

_MOMENTUM = 0.1


class Standardise(nn.Module):
    """Each dimension to mean 0 and variance 1 over the rows given, without gain or shift (SimCLR's last batch norm).

    Cells look alike, so an untrained network's projections all point the same way, and their cosines, near 1, tell
    nothing apart. Seen from their mean the projections point everywhere from the first step on, and a batch cannot lie at
    one point.

    In evaluation the running statistics of training are used.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))

    def forward(self, rows: Tensor, follow: bool = True) -> Tensor:
        """Rows (N, D) → (N, D); N ≥ 2 in training, where more than one row is needed for a variance.

        Without ``follow`` the running statistics stay as they are: for rows that were given before.
        """
        if self.training and not follow:
            return F.batch_norm(rows, None, None, training=True)
        return F.batch_norm(rows, self.mean, self.variance, training=self.training, momentum=_MOMENTUM)


class AsItIs(nn.Identity):
    """Stands where a plain projector has nothing to standardise."""

    def forward(self, rows: Tensor, follow: bool = True) -> Tensor:
        """Rows (N, D), the same."""
        return rows


def make_projector(kind: str, embedding_dim: int, projection_dim: int) -> tuple[nn.Module, nn.Module]:
    """The projector, and what brings its outputs to one scale.

    ``plain`` is a linear layer, ReLU, a linear layer, as SimCLR's and SLAM-AGS's papers print it. ``standardised`` has
    batch norm after either layer, as SimCLR's code has. A ``projection_dim`` of 0 makes none.

    Raises `SettingsError` for another kind.
    """
    if not projection_dim:
        return nn.Identity(), AsItIs()
    if kind == "plain":
        first, last = nn.Linear(embedding_dim, embedding_dim), nn.Linear(embedding_dim, projection_dim)
        return nn.Sequential(first, nn.ReLU(inplace=True), last), AsItIs()
    if kind == "standardised":
        layers = (
            nn.Linear(embedding_dim, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim),
            nn.ReLU(inplace=True),
            nn.Linear(embedding_dim, projection_dim, bias=False),
        )
        return nn.Sequential(*layers), Standardise(projection_dim)
    raise SettingsError(f"there is no projector '{kind}'. Known: standardised, plain.")


SMALL_STEM_UP_TO = 64


@dataclass(frozen=True)
class Architecture:
    """What an encoder is built from.

    ``name`` is resnet18, resnet50 or timm's; ``stem`` is ``standard`` (ImageNet's) or ``small`` (for small images);
    ``projection_dim`` 0 is an encoder without projector, whose z is h; ``image_size`` is None where any will do;
    ``projector`` is ``plain`` or ``standardised`` (see `make_projector`).
    """

    name: str = "resnet18"
    stem: str = "small"
    projection_dim: Annotated[int, Field(ge=0)] = 128
    image_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    projector: str = "plain"


def resolve_stem(stem: str, image_size: int) -> str:
    """``auto`` becomes ``small`` up to 64 pixels: ImageNet's stem would leave a single position of a 32-pixel cell."""
    if stem != "auto":
        return stem
    return "small" if image_size <= SMALL_STEM_UP_TO else "standard"


def resolve_architecture(
    name: str, stem: str, projection_dim: int, image_size: int, projector: str = "plain"
) -> Architecture:
    """The architecture that these settings ask for.

    Raises `SettingsError` for a name that nobody has, or a small stem where there is none.
    """
    if is_resnet(name):
        return Architecture(name, resolve_stem(stem, image_size), projection_dim, projector=projector)
    sized = wants_image_size(name)
    if stem == "small":
        raise SettingsError(f"--stem small is for resnet18 and resnet50; {name} has its own. Leave it out.")
    return Architecture(name, "standard", projection_dim, image_size if sized else None, projector)


class Encoder(nn.Module):
    """Pixels to (h, z).

    ``forward`` takes pixels in 0 to 1, shape (N, 3, S, S), and returns h, shape (N, embedding_dim), and z, shape
    (N, projection_dim). Channel mean and standard deviation are part of the module and of its weights file. Raises
    `SettingsError` for an architecture that nobody has.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        backbone = make_backbone(architecture.name, architecture.stem, architecture.image_size)
        self.embedding_dim = backbone.dim
        self.backbone = backbone.network
        self.projector, self.standardise = make_projector(
            architecture.projector, self.embedding_dim, architecture.projection_dim
        )
        self.architecture = architecture
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5))
        self.register_buffer("std", torch.full((1, 3, 1, 1), 0.25))

    def normalise_by(self, mean: Tensor, std: Tensor) -> None:
        """Take these channel means and standard deviations, each (3,), of pixels in 0 to 1."""
        self.mean.copy_(mean.view(1, 3, 1, 1))
        self.std.copy_(std.view(1, 3, 1, 1))

    def dim_of(self, layer: str) -> int:
        """Length of ``layer``, h or z."""
        return self.embedding_dim if layer == "h" else self.architecture.projection_dim or self.embedding_dim

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (N, 3, S, S) in 0 to 1 → h (N, embedding_dim), z (N, projection_dim)."""
        h, raw = self.project(pixels)
        return h, self.standardise(raw)

    def project(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels as above → h, and z before it is brought to one scale; what training of cells apart starts from."""
        h = self.backbone((pixels - self.mean) / self.std)
        return h, self.projector(h)
