"""The encoder: a backbone that computes the embedding h, and a projector that computes the projection z."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet18, resnet50

from cytomil.errors import SettingsError

_RESNETS = {"resnet18": resnet18, "resnet50": resnet50}
# torchvision's ImageNet weights were trained with these.
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Backbone:
    """A network without its classifier, with random weights: pixels (N, 3, S, S) → (N, ``dim``).

    Args:
        network: the network.
        dim: length of its output.
        mean: channel means that its published weights were trained with.
        std: channel standard deviations that its published weights were trained with.
        classifiers: prefixes of the removed layers.
        library: the library of the network.
    """

    network: nn.Module
    dim: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classifiers: tuple[str, ...]
    library: str


def is_resnet(name: str) -> bool:
    """Whether this is a ResNet of torchvision, which takes any image size and can have the small stem."""
    return name in _RESNETS


def needs_image_size(name: str) -> bool:
    """Whether the network must be built for one image size, like a vision transformer.

    Raises:
        SettingsError: the name is unknown.
    """
    return not is_resnet(name) and bool(_timm_config(name).fixed_input_size)


def make_backbone(name: str, stem: str = "standard", image_size: int | None = None) -> Backbone:
    """Build a network by name. ``stem`` is for ResNets only, ``image_size`` for networks that `needs_image_size` reports.

    Raises:
        SettingsError: the name is unknown, or the network cannot be built for the size.
    """
    return _resnet(name, stem) if is_resnet(name) else _from_timm(name, image_size)


def require_image_size(name: str, network: nn.Module, dim: int, image_size: int) -> None:
    """Run the network once. Raises `SettingsError` unless it returns ``dim`` numbers per cell of ``image_size`` pixels."""
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    side = patch[0] if isinstance(patch, tuple) else patch
    if isinstance(side, int) and image_size % side:
        below = max(side, image_size // side * side)
        # The network would silently cut off a partial patch.
        raise SettingsError(
            f"{name} cuts cells into patches of {side} px, and {image_size} px is not a multiple of it. "
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
            f"{name} returns the shape {shape[1:]} for a cell instead of an embedding of length {dim}. Use another --arch."
        )


def stage_of_parameters(name: str, network: nn.Module) -> dict[str, int]:
    """The stage of each parameter by name, counted from 1; 0 is the stem. Empty if the stages are not known."""
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
    config = _timm_config(name)
    import timm

    sized: dict[str, Any] = {"img_size": image_size} if image_size and config.fixed_input_size else {}
    try:
        # pretrained=False: only `cytomil.encoders.start` loads weights.
        network: Any = timm.create_model(name, pretrained=False, num_classes=0, **sized)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise SettingsError(
            f"timm cannot build {name} for cells of {image_size} px ({_first_line(error)}). "
            f"Use another --image-size; {_trained_at(name)}."
        ) from None
    dim = getattr(network, "head_hidden_size", None) or network.num_features
    classifier = config.classifier or ()
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return Backbone(network, dim, config.mean, config.std, tuple(f"{one}." for one in names), "timm")


def _timm_config(name: str) -> Any:
    import timm

    # timm would download from a name that begins with hf-hub:.
    config = timm.get_pretrained_cfg(name.partition(".")[0]) if timm.is_model(name) and ":" not in name else None
    if config is None:
        near = difflib.get_close_matches(name, [*_RESNETS, *timm.list_models()], n=1)
        suggestion = f" Did you mean '{near[0]}'?" if near else ""
        raise SettingsError(
            f"there is no arch '{name}'. Available: {', '.join(_RESNETS)}, and the names of timm.list_models().{suggestion}"
        )
    return config


def _trained_at(name: str) -> str:
    if is_resnet(name):
        return "its published weights were trained at 224"
    return f"its published weights were trained at {_timm_config(name).input_size[-1]}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__


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
    sized = needs_image_size(name)
    if stem == "small":
        raise SettingsError(
            f"--stem small is for resnet18 and resnet50; the first layers of {name} are fixed. Remove --stem."
        )
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
