"""The encoder: a backbone that computes the embedding h, and a projector that computes the projection z."""

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
    """Standardise each dimension to mean 0 and variance 1, without gain or shift (SimCLR's last batch norm).

    Cells look similar, so all projections of an untrained network have nearly the same direction, and cosines near 1
    distinguish nothing. Relative to their mean, projections have all directions from the first step on, and a batch
    cannot collapse to one point.

    Training uses the statistics of the given rows, evaluation the running statistics.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))

    def forward(self, rows: Tensor, update_statistics: bool = True) -> Tensor:
        """Rows (N, D) → (N, D). Training needs N ≥ 2, because a single row has no variance.

        Use ``update_statistics=False`` if the running statistics already include the rows.
        """
        if self.training and not update_statistics:
            return F.batch_norm(rows, None, None, training=True)
        return F.batch_norm(rows, self.mean, self.variance, training=self.training, momentum=_MOMENTUM)


class NoStandardisation(nn.Identity):
    """Replaces `Standardise` after a plain projector."""

    def forward(self, rows: Tensor, update_statistics: bool = True) -> Tensor:
        """Return the rows (N, D) unchanged."""
        return rows


def make_projector(kind: str, embedding_dim: int, projection_dim: int) -> tuple[nn.Module, nn.Module]:
    """The projector, and the module that standardises its outputs.

    Args:
        kind: ``plain``: linear, ReLU, linear, as in the papers of SimCLR and SLAM-AGS; ``standardised``: batch norm after
            both linear layers, as in SimCLR's code.
        embedding_dim: length of h.
        projection_dim: length of z; 0: no projector.

    Raises:
        SettingsError: ``kind`` is unknown.
    """
    if not projection_dim:
        return nn.Identity(), NoStandardisation()
    if kind == "plain":
        first, last = nn.Linear(embedding_dim, embedding_dim), nn.Linear(embedding_dim, projection_dim)
        return nn.Sequential(first, nn.ReLU(inplace=True), last), NoStandardisation()
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
    """The architecture of an encoder.

    Args:
        name: resnet18, resnet50 or a name of timm.
        stem: ``standard`` (ImageNet's) or ``small`` (for small images).
        projection_dim: length of z; 0: no projector, and z is h.
        image_size: the required side of a cell in pixels; None: any.
        projector: ``plain`` or ``standardised``, see `make_projector`.
    """

    name: str = "resnet18"
    stem: str = "small"
    projection_dim: Annotated[int, Field(ge=0)] = 128
    image_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    projector: str = "plain"


def resolve_stem(stem: str, image_size: int) -> str:
    """``auto`` becomes ``small`` up to 64 pixels. ImageNet's stem would reduce a 32-pixel cell to one position."""
    if stem != "auto":
        return stem
    return "small" if image_size <= SMALL_STEM_UP_TO else "standard"


def resolve_architecture(
    name: str, stem: str, projection_dim: int, image_size: int, projector: str = "plain"
) -> Architecture:
    """The architecture of these settings.

    Raises:
        SettingsError: the name is unknown, or the architecture has no small stem.
    """
    if is_resnet(name):
        return Architecture(name, resolve_stem(stem, image_size), projection_dim, projector=projector)
    sized = wants_image_size(name)
    if stem == "small":
        raise SettingsError(f"--stem small is for resnet18 and resnet50; {name} has its own. Remove --stem.")
    return Architecture(name, "standard", projection_dim, image_size if sized else None, projector)


class Encoder(nn.Module):
    """The network that turns pixels into h and z.

    ``forward`` takes pixels in 0 to 1, shape (N, 3, S, S), and returns h, shape (N, embedding_dim), and z, shape
    (N, projection_dim). The weights file includes the channel means and standard deviations.

    Raises:
        SettingsError: the architecture is unknown.
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
        """Set the channel means and standard deviations, each (3,), of pixels in 0 to 1."""
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
        """Pixels (N, 3, S, S) in 0 to 1 → h, and z before standardisation."""
        h = self.backbone((pixels - self.mean) / self.std)
        return h, self.projector(h)
