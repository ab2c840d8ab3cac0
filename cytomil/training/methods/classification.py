"""Cross entropy against labels: the slide's for every cell (weak supervision), or each cell's own (upper bound)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cytomil.encoders.architecture import Encoder
from cytomil.training.cells import TrainingCells
from cytomil.training.config import PretrainConfig
from cytomil.training.methods.base import Batch, Method, balanced_batches


class WeaklySupervised(Method):
    """A linear head on the projection z learns to predict each cell's slide label, with one view per cell.

    The head reads z instead of h, because the layer that is embedded by default must be trained.
    """

    n_views = 1
    classes = True
    unused = ("temperature",)

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
    """The upper bound: learns each cell's own label. Half of each batch is abnormal; with other methods, positive."""

    uses_instance_labels = True

    def __init__(
        self, settings: PretrainConfig, encoder: Encoder, cells: TrainingCells, instance_labels: Tensor
    ) -> None:
        super().__init__(settings, encoder, cells)
        self.instance_labels = instance_labels

    def batches(self, generator: torch.Generator) -> list[Tensor]:
        """Half of each step's cells are abnormal. If they are few, they are repeated."""
        classes = [torch.nonzero(self.instance_labels == label).flatten() for label in (0, 1)]
        return balanced_batches(classes, self.settings.batch_size, generator)

    def targets(self, batch: Batch) -> Tensor:
        """The instance labels, shape (B,)."""
        return self.instance_labels[batch.indices].to(batch.is_positive.device)
