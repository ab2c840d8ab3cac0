"""SLAM-AGS and WeakSupCon: a similarity loss on negative slides' cells, and NT-Xent on positive slides' cells."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from cytomil.config import Config
from cytomil.encoders.architecture import Encoder
from cytomil.training.cells import TrainingCells
from cytomil.training.config import PretrainConfig
from cytomil.training.losses import chance_level, nt_xent_loss, similarity_loss
from cytomil.training.methods.base import Batch, Method, project_views
from cytomil.training.surgery import Rescale, Surgery, find_weighting

Views = tuple[Tensor, Tensor]

_PRINTED_SCALE, _STABLE_SCALE = 1.0, 0.04


class WeakSupConConfig(Config):
    """Settings of WeakSupCon."""

    objective: Literal["stable", "paper"] = Field(
        "stable", description="default factor of the similarity loss; stable: 0.04; paper: 1, as printed"
    )
    similarity_scale: float | Literal["tau"] | None = Field(
        None,
        description="factor of the similarity loss; none: 0.04, or 1 for --objective paper; 'tau': τ, which cancels its 1/τ",
    )


class SlamAgsConfig(WeakSupConConfig):
    """Settings of SLAM-AGS."""

    objective: Literal["stable", "paper"] = Field(
        "stable",
        description="stable: contrasts all cells, and this task has priority; paper: contrasts positive slides' cells "
        "only, as printed, which collapses",
    )
    surgery: Surgery | None = Field(
        None,
        description="how the gradients of the two tasks become one update; none: priority, or adaptive for "
        "--objective paper",
    )
    rescale: Rescale = Field(Rescale.PAPER, description="when adaptive surgery restores the plain sum's norm")


class WeakSupCon(Method):
    """WeakSupCon (Zhang et al., 2025), as SLAM-AGS compares with it: the plain sum of both tasks."""

    Config = WeakSupConConfig
    contrast = "nt_xent"

    def losses(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """Similarity of the negatives' projections, NT-Xent of the positives'."""
        z_i, z_j = project_views(encoder, batch.views)
        positive = batch.is_positive
        return self.two_tasks((z_i[~positive], z_j[~positive]), (z_i[positive], z_j[positive]))

    def two_tasks(self, negatives: Views, contrasted: Views) -> dict[str, Tensor]:
        """The scaled similarity loss of both views of ``negatives``, and NT-Xent of the cells in ``contrasted``."""
        temperature, scale = self.settings.temperature, self.own.similarity_scale
        if scale is None:
            scale = _PRINTED_SCALE if self.own.objective == "paper" else _STABLE_SCALE
        return {
            "similarity": (temperature if scale == "tau" else scale)
            * similarity_loss(torch.cat(negatives), temperature),
            "nt_xent": nt_xent_loss(*contrasted, temperature),
        }

    def chance(self, batch: Batch) -> float:
        """ln(2B₊ − 1). Half of the batch is positive."""
        return chance_level(len(batch.is_positive) // 2)


class SlamAgs(WeakSupCon):
    """SLAM-AGS (arXiv 2511.14639): a similarity task on negatives and a contrastive task, combined by gradient surgery.

    As printed (``objective: paper``), only positives are contrasted. One point for all negatives is then the optimum of
    the objective, whatever surgery does. The ``stable`` objective contrasts the cells of both sides, so a collapse of the
    negatives raises the contrastive loss. This task has priority. The similarity task affects only the remaining
    directions.
    """

    Config = SlamAgsConfig

    def __init__(self, settings: PretrainConfig, encoder: Encoder, cells: TrainingCells) -> None:
        super().__init__(settings, encoder, cells)
        self.contrasts_all = self.own.objective == "stable"
        usual = Surgery.PRIORITY if self.contrasts_all else Surgery.ADAPTIVE
        self.weighting = find_weighting(self.own.surgery or usual, self.own.rescale)

    def losses(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """Similarity of the negatives' projections, and NT-Xent of the projections of all cells or of the positives.

        If surgery needs the gradient of each task, there is one forward pass per side. The similarity's gradient then
        flows back through its own cells only. In a joint pass, batch norm couples all cells, and each gradient would
        flow back through all of them.
        """
        sides = (~batch.is_positive, batch.is_positive)
        if self.weighting is None:
            z_i, z_j = project_views(encoder, batch.views)
            negatives, positives = ((z_i[side], z_j[side]) for side in sides)
            return self.two_tasks(negatives, (z_i, z_j) if self.contrasts_all else positives)
        of_negatives, of_positives = (
            encoder.project(torch.cat([view[side] for view in batch.views]))[1] for side in sides
        )
        negatives, _ = _standardised(encoder, of_negatives, of_positives.detach())
        if self.contrasts_all:
            others, positives = _standardised(encoder, of_negatives, of_positives, again=True)
            return self.two_tasks(
                negatives, (torch.cat([others[0], positives[0]]), torch.cat([others[1], positives[1]]))
            )
        _, positives = _standardised(encoder, of_negatives.detach(), of_positives, again=True)
        return self.two_tasks(negatives, positives)

    def chance(self, batch: Batch) -> float:
        """ln(2B − 1) for the B cells that are contrasted."""
        return chance_level(len(batch.is_positive)) if self.contrasts_all else super().chance(batch)


def _standardised(encoder: Encoder, negatives: Tensor, positives: Tensor, again: bool = False) -> tuple[Views, Views]:
    """Both views' projections of each side, standardised over the cells of both sides.

    Standardised alone, the negatives would have mean zero whatever the similarity loss does. The running statistics are
    updated the first time, and not if the same rows come ``again``.
    """
    z = encoder.standardise(torch.cat([negatives, positives]), update_statistics=not again)
    (n_i, n_j), (p_i, p_j) = (side.chunk(2) for side in (z[: len(negatives)], z[len(negatives) :]))
    return (n_i, n_j), (p_i, p_j)
