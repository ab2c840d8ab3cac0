"""Deep SVDD (Ruff et al., ICML 2018): negative slides' cells in the smallest sphere around a fixed centre."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cytomil.encoders.architecture import Encoder
from cytomil.encoders.engines.eager import to_unit_range
from cytomil.training.batches import deal_pools
from cytomil.training.cells import TrainingCells
from cytomil.training.config import PretrainConfig
from cytomil.training.methods.base import Batch, Method

_LEAST_COORDINATE = 0.1
_LEAST_SHARE = 1e-6
"""Of the greatest variance: a direction that varies less is counted as if it varied so much."""


class DeepSVDD(Method):
    """The mean squared distance a dimension of negatives' projections z from a centre (eq. 4), one view a cell.

    The paper sums over the dimensions; their mean keeps the scale, and so the learning rate, free of their number.

    An encoder that starts from nothing follows the paper: the centre is the mean projection of the negatives in an initial
    pass, its coordinates kept off zero. Against the sphere that shrinks to nothing the centre is fixed and no layer has a
    bias (batch norm has neither shift nor gain, as in the authors' code), so that no constant but zero is easily learnt;
    ReLU is unbounded.

    An encoder that starts from weights of elsewhere keeps them: the backbone is frozen, its batch norms' statistics too. The
    projector's first layer whitens the negatives' h, each leading component with both signs, so that ReLU loses nothing;
    it stays as it is. Its last layer begins by putting the signs together again, in a random rotation: the
    distance from the centre is then the Mahalanobis distance of h. This layer alone is trained, without a bias. Zero is
    its easiest answer, so the rate and the number of epochs must be small: the gain comes first, the collapse later.
    """

    n_views = 1
    standardises = False

    def __init__(self, settings: PretrainConfig, encoder: Encoder, cells: TrainingCells) -> None:
        super().__init__(settings, encoder, cells)
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(settings.projection_dim))
        self._keeps_backbone = settings.weights != "none"
        if self._keeps_backbone:
            _freeze_all_but_last(encoder)
        else:
            _take_biases(encoder)

    def batches(self, generator: torch.Generator) -> list[Tensor]:
        """Negative slides' cells, each once."""
        return deal_pools(self.sides()[:1], self.settings.batch_size, generator)

    def before_epoch(self, epoch: int, encoder: Encoder) -> None:
        """Fix the projector's first layer, where the backbone is kept, and the centre before the first step."""
        if epoch:
            return
        if self._keeps_backbone:
            _whiten(encoder, self._of_negatives(encoder, 0), self.settings.seed)
        mean = self._of_negatives(encoder, 1).mean(dim=0)
        self.centre.copy_(mean if self._keeps_backbone else _off_zero(mean))

    def losses(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """Mean squared distance from the centre, a dimension."""
        (view,) = batch.views
        if self._keeps_backbone:
            encoder.backbone.eval()
        _, z = encoder(view)
        return {"distance": (z - self.centre).square().mean()}

    def origin(self) -> Tensor:
        """The centre: directions of z mean something as seen from there."""
        return self.centre

    @torch.no_grad()
    def _of_negatives(self, encoder: Encoder, which: int) -> Tensor:
        """The negatives' h (0) or z (1), (N, D), as they are, without views."""
        # An untrained encoder's running statistics are those of no cell: it takes the batch's, as in training.
        encoder.train(not self._keeps_backbone)
        negatives = self.sides()[0]
        blocks = negatives.tensor_split(max(1, len(negatives) // self.settings.batch_size))
        found = (encoder(to_unit_range(self.cells.pixels[block], self.centre.device))[which] for block in blocks)
        return torch.cat(list(found))


def _take_biases(encoder: Encoder) -> None:
    for module in encoder.modules():
        if isinstance(module, _BatchNorm):
            nn.init.ones_(module.weight)
            module.weight.requires_grad_(False)
        bias = getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter):
            nn.init.zeros_(bias)
            bias.requires_grad_(False)


def _off_zero(centre: Tensor) -> Tensor:
    sign = torch.where(centre < 0, -1.0, 1.0)
    return torch.where(centre.abs() < _LEAST_COORDINATE, sign * _LEAST_COORDINATE, centre)


def _linear_layers(encoder: Encoder) -> Iterator[nn.Linear]:
    return (layer for layer in encoder.projector.modules() if isinstance(layer, nn.Linear))


def _freeze_all_but_last(encoder: Encoder) -> None:
    encoder.requires_grad_(False)
    *_, last = _linear_layers(encoder)
    last.weight.requires_grad_(True)


@torch.no_grad()
def _whiten(encoder: Encoder, h: Tensor, seed: int) -> None:
    """Set the plain projector so that z are the first principal components of ``h`` (N ≥ 2, D), whitened and rotated.

    The rotation spreads every component over all of z, so that its dimensions vary alike: fit-mil brings each to unit
    variance, and would undo what training takes out of one component.
    """
    first, last = _linear_layers(encoder)
    centred = (h - h.mean(dim=0)).double()
    k = min(last.out_features, first.out_features // 2, len(h) - 1)
    _, singular, components = torch.linalg.svd(centred, full_matrices=False)
    spread = singular.clamp(min=_LEAST_SHARE**0.5 * float(singular[0]) or 1.0) / (len(h) - 1) ** 0.5
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
