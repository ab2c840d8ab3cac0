"""No pretraining: the encoder as it starts, untrained or with others' weights, to embed with and to compare with."""

from __future__ import annotations

import torch
from torch import Tensor

from cytomil.encoders.architecture import Encoder
from cytomil.training.cells import TrainingCells
from cytomil.training.config import PretrainConfig
from cytomil.training.methods.base import Batch, Method
from cytomil.training.training_encoder import embed_cells

_CELLS = 256


class NoPretraining(Method):
    """Takes no step. An untrained projector would only blur h, so the encoder has none and its z is h.

    No loss of cytomil's gave its embeddings a direction from zero, and many a network's lie all on one side of it. Their
    directions are therefore those seen from their mean.
    """

    trains = False

    def __init__(self, settings: PretrainConfig, encoder: Encoder, cells: TrainingCells) -> None:
        super().__init__(settings, encoder, cells)
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(encoder.dim_of("z")))

    def batches(self, generator: torch.Generator) -> list[Tensor]:
        """None."""
        return []

    def before_epoch(self, epoch: int, encoder: Encoder) -> None:
        """Find the mean embedding of some cells."""
        pixels = self.cells.pixels
        places = torch.linspace(0, len(pixels) - 1, min(_CELLS, len(pixels))).long()
        self.centre.copy_(embed_cells(encoder, pixels[places])[1].mean(dim=0))

    def losses(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """There are none to take."""
        raise NotImplementedError("method 'none' takes no step")

    def origin(self) -> Tensor:
        """The mean embedding."""
        return self.centre
