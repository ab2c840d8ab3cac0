"""One-class methods, which learn from negative slides only: Deep SVDD and DROC."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cytomil.encoders.architecture import Encoder
from cytomil.encoders.engines.engine import to_unit_range
from cytomil.training.cells import TrainingCells
from cytomil.training.config import PretrainConfig
from cytomil.training.losses import chance_level, nt_xent_loss
from cytomil.training.methods.base import Batch, Method, balanced_batches

_MIN_COORDINATE = 0.1
_MIN_VARIANCE_FRACTION = 1e-6
"""Lower bound on the variance of a direction, as a fraction of the largest variance."""


class DeepSVDD(Method):
    """The mean squared distance per dimension of negatives' projections z from a centre (eq. 4), one view per cell.

    The paper sums over the dimensions. Their mean makes the scale, and with it the learning rate, independent of their
    number.

    An encoder with random initial weights follows the paper. The centre is the mean projection of the negatives in an
    initial pass, with coordinates kept away from zero. Three measures prevent a collapse to a constant: the centre is
    fixed, no layer has a bias (batch norm has neither shift nor gain, as in the authors' code), and ReLU is unbounded.

    An encoder that starts from weights keeps them. The backbone is frozen, including the statistics of its batch norms.
    The projector's first layer whitens the negatives' h and stays fixed. It outputs each leading component with both
    signs, so that ReLU loses nothing. The last layer initially recombines the signs in a random rotation, so that the
    distance from the centre is the Mahalanobis distance of h. Only this layer is trained, without a bias. It can collapse
    to zero, so the learning rate and the number of epochs must be small: the gain comes before the collapse.
    """

    n_views = 1
    standardises = False
    unused = ("temperature", "projector")

    def __init__(self, settings: PretrainConfig, encoder: Encoder, cells: TrainingCells) -> None:
        super().__init__(settings, encoder, cells)
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(settings.projection_dim))
        self._keeps_backbone = settings.weights != "none"
        if self._keeps_backbone:
            _freeze_all_but_last(encoder)
        else:
            _remove_biases(encoder)

    def batches(self, generator: torch.Generator) -> list[Tensor]:
        """Negative slides' cells, each once."""
        return balanced_batches(self.sides()[:1], self.settings.batch_size, generator)

    def before_epoch(self, epoch: int, encoder: Encoder) -> None:
        """Set the centre before the first step and, if the backbone is frozen, the projector."""
        if epoch:
            return
        if self._keeps_backbone:
            _whiten(encoder, self._of_negatives(encoder, 0), self.settings.seed)
        mean = self._of_negatives(encoder, 1).mean(dim=0)
        self.centre.copy_(mean if self._keeps_backbone else _away_from_zero(mean))

    def losses(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """Mean squared distance from the centre, per dimension."""
        (view,) = batch.views
        if self._keeps_backbone:
            encoder.backbone.eval()
        _, z = encoder(view)
        return {"distance": (z - self.centre).square().mean()}

    def origin(self) -> Tensor:
        """The centre, from which the objective measures z."""
        return self.centre

    @torch.no_grad()
    def _of_negatives(self, encoder: Encoder, which: int) -> Tensor:
        """The negatives' h (``which`` 0) or z (1), (N, D), without views."""
        # The running statistics of an untrained encoder are meaningless. It uses those of the batch, as in training.
        encoder.train(not self._keeps_backbone)
        negatives = self.sides()[0]
        blocks = negatives.tensor_split(max(1, len(negatives) // self.settings.batch_size))
        found = (encoder(to_unit_range(self.cells.pixels[block], self.centre.device))[which] for block in blocks)
        return torch.cat(list(found))


def _remove_biases(encoder: Encoder) -> None:
    for module in encoder.modules():
        if isinstance(module, _BatchNorm):
            nn.init.ones_(module.weight)
            module.weight.requires_grad_(False)
        bias = getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter):
            nn.init.zeros_(bias)
            bias.requires_grad_(False)


def _away_from_zero(centre: Tensor) -> Tensor:
    sign = torch.where(centre < 0, -1.0, 1.0)
    return torch.where(centre.abs() < _MIN_COORDINATE, sign * _MIN_COORDINATE, centre)


def _linear_layers(encoder: Encoder) -> Iterator[nn.Linear]:
    return (layer for layer in encoder.projector.modules() if isinstance(layer, nn.Linear))


def _freeze_all_but_last(encoder: Encoder) -> None:
    encoder.requires_grad_(False)
    *_, last = _linear_layers(encoder)
    last.weight.requires_grad_(True)


@torch.no_grad()
def _whiten(encoder: Encoder, h: Tensor, seed: int) -> None:
    """Set the plain projector so that z holds the first principal components of ``h`` (N ≥ 2, D), whitened and rotated.

    The rotation spreads every component over all dimensions of z, so that their variances are similar. fit-mil scales
    each dimension to unit variance, which would otherwise undo what training changes in a single component.
    """
    first, last = _linear_layers(encoder)
    centred = (h - h.mean(dim=0)).double()
    k = min(last.out_features, first.out_features // 2, len(h) - 1)
    _, singular, components = torch.linalg.svd(centred, full_matrices=False)
    spread = singular.clamp(min=_MIN_VARIANCE_FRACTION**0.5 * float(singular[0]) or 1.0) / (len(h) - 1) ** 0.5
    whitening = (components[:k] / spread[:k, None]).float()
    shift = whitening @ h.mean(dim=0)
    for layer in (first, last):
        layer.weight.zero_()
        layer.bias.zero_()
    first.weight[:k], first.weight[k : 2 * k] = whitening, -whitening
    first.bias[:k], first.bias[k : 2 * k] = -shift, shift
    drawn = torch.randn(last.out_features, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rotation = torch.linalg.qr(drawn)[0].to(last.weight)
    last.weight[:, :k], last.weight[:, k : 2 * k] = rotation, -rotation


_TURNS = 4


class DROC(Method):
    """NT-Xent of negative slides' cells in four rotations. Each rotation counts as a separate instance.

    Views therefore do not rotate the cells. A step holds a quarter of ``batch_size`` cells, and thereby as many images
    as a step of other methods.
    """

    contrast = "nt_xent"
    rotates = False

    def batches(self, generator: torch.Generator) -> list[Tensor]:
        """Negative slides' cells, each once."""
        return balanced_batches(self.sides()[:1], max(1, self.settings.batch_size // _TURNS), generator)

    def losses(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """NT-Xent over cells times rotations."""
        turned = [view.rot90(turn, (2, 3)) for view in batch.views for turn in range(_TURNS)]
        _, z = encoder(torch.cat(turned).contiguous(memory_format=torch.channels_last))
        z_i, z_j = z.chunk(2)
        return {"nt_xent": nt_xent_loss(z_i, z_j, self.settings.temperature)}

    def chance(self, batch: Batch) -> float:
        """ln(8B − 1)."""
        return chance_level(_TURNS * len(batch.is_positive))
