"""Deep SVDD (Ruff et al., ICML 2018): negative slides' cells in the smallest sphere around a fixed centre."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cytomil.encoders.architecture import Encoder
from cytomil.encoders.engines.eager import to_unit_range
from cytomil.pretrain.batches import deal_pools
from cytomil.pretrain.cells import TrainingCells
from cytomil.pretrain.methods.base import Batch, Method
from cytomil.settings import PretrainSettings

_LEAST_COORDINATE = 0.1


class DeepSVDD(Method):
    """The mean squared distance a dimension of negatives' projections z from a centre (eq. 4), one view a cell.

    The paper sums over the dimensions; their mean keeps the scale, and so the learning rate, free of their number.

    The centre is the mean projection of the negatives in an initial pass, its coordinates kept off zero. Against the
    sphere that shrinks to nothing the paper's rules hold: the centre is fixed and no layer has a bias (batch norm has
    neither shift nor gain, as in the authors' code), so that no constant but zero is easily learnt; ReLU is unbounded.
    """

    n_views = 1
    keeps_start = False
    standardises = False

    def __init__(self, settings: PretrainSettings, encoder: Encoder, cells: TrainingCells) -> None:
        super().__init__(settings, encoder, cells)
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(settings.projection_dim))
        _take_biases(encoder)

    def batches(self, generator: torch.Generator) -> list[Tensor]:
        """Negative slides' cells, each once."""
        return deal_pools(self.sides()[:1], self.settings.batch_size, generator)

    def before_epoch(self, epoch: int, encoder: Encoder) -> None:
        """Fix the centre before the first step."""
        if epoch == 0:
            self.centre.copy_(self._initial_centre(encoder))

    def losses(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """Mean squared distance from the centre, a dimension."""
        (view,) = batch.views
        _, z = encoder(view)
        return {"distance": (z - self.centre).square().mean()}

    def origin(self) -> Tensor:
        """The centre: directions of z mean something as seen from there."""
        return self.centre

    @torch.no_grad()
    def _initial_centre(self, encoder: Encoder) -> Tensor:
        # With batch statistics, as in training: an untrained encoder's running ones are those of no cell.
        encoder.train()
        negatives = self.sides()[0]
        blocks = negatives.tensor_split(max(1, len(negatives) // self.settings.batch_size))
        total = torch.zeros_like(self.centre)
        for block in blocks:
            _, z = encoder(to_unit_range(self.cells.pixels[block], self.centre.device))
            total += z.sum(dim=0)
        centre = total / len(negatives)
        sign = torch.where(centre < 0, -1.0, 1.0)
        return torch.where(centre.abs() < _LEAST_COORDINATE, sign * _LEAST_COORDINATE, centre)


def _take_biases(encoder: Encoder) -> None:
    for module in encoder.modules():
        if isinstance(module, _BatchNorm):
            nn.init.ones_(module.weight)
            module.weight.requires_grad_(False)
        bias = getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter):
            nn.init.zeros_(bias)
            bias.requires_grad_(False)
