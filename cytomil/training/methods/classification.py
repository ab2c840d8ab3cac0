"""Cross entropy against labels: the slide's for every cell (weak supervision), or each cell's own (the ceiling)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cytomil.encoders.architecture import Encoder
from cytomil.training.batches import deal_pools
from cytomil.training.cells import TrainingCells
from cytomil.training.config import PretrainConfig
from cytomil.training.methods.base import Batch, Method


class WeaklySupervised(Method):
    """Every cell takes its slide's label, and a linear head on the projection z learns to predict it, one view a cell.

    The head reads z, not h, so that the layer embedded by default is a trained one.
    """

    n_views = 1
    classes = True

    def __init__(self, settings: PretrainConfig, encoder: Encoder, cells: TrainingCells) -> None:
        super().__init__(settings, encoder, cells)
        self.head = nn.Linear(settings.projection_dim, 2)

    def losses(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy of the head's logits against the targets."""
        (view,) = batch.views
        _, z = encoder(view)
        return {"classification": F.cross_entropy(self.head(z), self.targets(batch).long())}

    def targets(self, batch: Batch) -> Tensor:
        """The class of each cell, shape (B,)."""
        return batch.is_positive


class FullySupervised(WeaklySupervised):
    """The ceiling: the same with each cell's own label. Half of each batch is abnormal, as other methods' is positive."""

    uses_instance_labels = True

    def __init__(
        self, settings: PretrainConfig, encoder: Encoder, cells: TrainingCells, instance_labels: Tensor
    ) -> None:
        super().__init__(settings, encoder, cells)
        self.instance_labels = instance_labels

    def batches(self, generator: torch.Generator) -> list[Tensor]:
        """Half of each step's cells are abnormal, dealt again and again where they are few."""
        classes = [torch.nonzero(self.instance_labels == label).flatten() for label in (0, 1)]
        return deal_pools(classes, self.settings.batch_size, generator)

    def targets(self, batch: Batch) -> Tensor:
        """The cells' own labels."""
        return self.instance_labels[batch.indices].to(batch.is_positive.device)
