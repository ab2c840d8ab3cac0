"""No pretraining: keep the initial encoder, with random or published weights, as it is."""

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
    """Takes no step. The encoder has no projector, because an untrained projector would only lose information. Its z is h.

    Directions of z are measured from the mean embedding. No loss of cytomil has centred the embeddings at zero, and those of
    many networks are far from it.
    """

    trains = False
    unused = (
        *("epochs", "warmup_epochs", "batch_size", "learning_rate", "momentum", "weight_decay", "frozen_stages"),
        *("crop_scale", "jitter", "projector", "projection_dim", "temperature"),
    )

    def __init__(self, settings: PretrainConfig, encoder: Encoder, cells: TrainingCells) -> None:
        super().__init__(settings, encoder, cells)
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(encoder.dim_of("z")))

    def batches(self, generator: torch.Generator) -> list[Tensor]:
        """No steps."""
        return []

    def before_epoch(self, epoch: int, encoder: Encoder) -> None:
        """Compute the mean embedding of some cells."""
        pixels = self.cells.pixels
        places = torch.linspace(0, len(pixels) - 1, min(_CELLS, len(pixels))).long()
        self.centre.copy_(embed_cells(encoder, pixels[places])[1].mean(dim=0))

    def losses(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """There are no losses. Raises `NotImplementedError`."""
        raise NotImplementedError("method 'none' takes no step")

    def origin(self) -> Tensor:
        """The mean embedding."""
        return self.centre
