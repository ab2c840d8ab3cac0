"""The two tasks that SLAM-AGS and WeakSupCon share: similarity on negative slides' cells, NT-Xent on positive ones'."""

from __future__ import annotations

import torch
from torch import Tensor

from cytomil.encoders.architecture import Encoder
from cytomil.pretrain.cells import TrainingCells
from cytomil.pretrain.losses import chance_level, nt_xent_loss, similarity_loss
from cytomil.pretrain.methods.base import Batch, Method, project_views
from cytomil.pretrain.surgery import surgeon
from cytomil.settings import PretrainSettings, Surgery

Views = tuple[Tensor, Tensor]


class WeakSupCon(Method):
    """WeakSupCon (Zhang et al., 2025) as SLAM-AGS compares with it: the plain sum of both tasks."""

    contrast = "nt_xent"

    def losses(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """Similarity of the negatives' projections, NT-Xent of the positives'."""
        settings = self.settings
        temperature = settings.temperature
        scale = temperature if settings.similarity_scale == "tau" else settings.similarity_scale
        negatives, (z_i, z_j) = self.project(encoder, batch)
        return {
            "similarity": scale * similarity_loss(torch.cat(negatives), temperature),
            "nt_xent": nt_xent_loss(z_i, z_j, temperature),
        }

    def project(self, encoder: Encoder, batch: Batch) -> tuple[Views, Views]:
        """Both views' projections of the negatives, and of the positives, from one forward pass over all of them."""
        z_i, z_j = project_views(encoder, batch.views)
        positive = batch.is_positive
        return (z_i[~positive], z_j[~positive]), (z_i[positive], z_j[positive])

    def chance(self, batch: Batch) -> float:
        """ln(2B₊ − 1), where half of the batch is positive."""
        return chance_level(len(batch.is_positive) // 2)


class SlamAgs(WeakSupCon):
    """SLAM-AGS (arXiv 2511.14639): both tasks, their gradients reconciled by surgery, adaptive unless another is chosen."""

    reconciles = True

    def __init__(self, settings: PretrainSettings, encoder: Encoder, cells: TrainingCells) -> None:
        super().__init__(settings, encoder, cells)
        self.weigh = surgeon(settings.surgery or Surgery.ADAPTIVE, settings.rescale)

    def project(self, encoder: Encoder, batch: Batch) -> tuple[Views, Views]:
        """The same from one forward pass a task, where surgery asks for each task's own gradient.

        Each task's gradient then goes back through its own cells alone. Through one pass over both, batch norm would tie
        every cell to every other, and either gradient would have to go back through all of them.
        """
        if self.weigh is None:
            return super().project(encoder, batch)
        sides = (~batch.is_positive, batch.is_positive)
        negatives, positives = (encoder.project(torch.cat([view[side] for view in batch.views]))[1] for side in sides)
        return _beside(encoder, negatives, positives), _beside(encoder, positives, negatives, again=True)


def _beside(encoder: Encoder, own: Tensor, others: Tensor, again: bool = False) -> Views:
    """Both views' projections, standardised over both sides' cells, where only ``own`` carries a gradient.

    Standardised by themselves the negatives would lie about zero, whatever the similarity loss did. The running
    statistics follow the first time, not when the same rows come ``again``.
    """
    z_i, z_j = encoder.standardise(torch.cat([own, others.detach()]), follow=not again)[: len(own)].chunk(2)
    return z_i, z_j
