"""The two tasks that SLAM-AGS and WeakSupCon share: similarity on negative slides' cells, NT-Xent on positive ones'."""

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
from cytomil.training.surgery import Rescale, Surgery, surgeon

Views = tuple[Tensor, Tensor]

_PRINTED_SCALE, _STABLE_SCALE = 1.0, 0.04


class WeakSupConConfig(Config):
    """What WeakSupCon has settings of its own for."""

    objective: Literal["stable", "paper"] = Field(
        "stable", description="what the similarity loss counts unless told: stable: 0.04; paper: 1, as printed"
    )
    similarity_scale: float | Literal["tau"] | None = Field(
        None,
        description="factor on the similarity loss; none: 0.04, or 1 for --objective paper; 'tau': undoes its 1/τ",
    )


class SlamAgsConfig(WeakSupConConfig):
    """What SLAM-AGS has settings of its own for."""

    objective: Literal["stable", "paper"] = Field(
        "stable",
        description="stable: all cells are contrasted, and that task goes first; paper: positive slides' cells alone, as "
        "printed, which collapses",
    )
    surgery: Surgery | None = Field(
        None,
        description="how the gradients of the two tasks become one update; none: priority, or adaptive for "
        "--objective paper",
    )
    rescale: Rescale = Field(Rescale.PAPER, description="when adaptive surgery restores the plain sum's norm")


class WeakSupCon(Method):
    """WeakSupCon (Zhang et al., 2025) as SLAM-AGS compares with it: the plain sum of both tasks."""

    Config = WeakSupConConfig
    contrast = "nt_xent"

    def losses(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """Similarity of the negatives' projections, NT-Xent of the positives'."""
        z_i, z_j = project_views(encoder, batch.views)
        positive = batch.is_positive
        return self.two_tasks((z_i[~positive], z_j[~positive]), (z_i[positive], z_j[positive]))

    def two_tasks(self, negatives: Views, contrasted: Views) -> dict[str, Tensor]:
        """The similarity loss of both views of ``negatives``, scaled, and NT-Xent of those ``contrasted``."""
        temperature, scale = self.settings.temperature, self.own.similarity_scale
        if scale is None:
            scale = _PRINTED_SCALE if self.own.objective == "paper" else _STABLE_SCALE
        return {
            "similarity": (temperature if scale == "tau" else scale)
            * similarity_loss(torch.cat(negatives), temperature),
            "nt_xent": nt_xent_loss(*contrasted, temperature),
        }

    def chance(self, batch: Batch) -> float:
        """ln(2B₊ − 1), where half of the batch is positive."""
        return chance_level(len(batch.is_positive) // 2)


class SlamAgs(WeakSupCon):
    """SLAM-AGS (arXiv 2511.14639): a coherent task on negatives, a contrastive one, their gradients reconciled by surgery.

    As printed (``objective: paper``) only positives are contrasted, and a single point for all negatives is the objective's
    optimum, whatever surgery does. The ``stable`` objective contrasts the cells of both sides, so that a collapse of the
    negatives costs the contrastive task as much as it costs any other cell, and gives that task priority, so that the
    coherent one shapes only what the contrast leaves open.
    """

    Config = SlamAgsConfig

    def __init__(self, settings: PretrainConfig, encoder: Encoder, cells: TrainingCells) -> None:
        super().__init__(settings, encoder, cells)
        self.contrasts_all = self.own.objective == "stable"
        usual = Surgery.PRIORITY if self.contrasts_all else Surgery.ADAPTIVE
        self.weigh = surgeon(self.own.surgery or usual, self.own.rescale)

    def losses(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """Similarity of the negatives' projections, NT-Xent of all cells' or of the positives'.

        Where surgery asks for each task's own gradient, there is one forward pass a side: the similarity's gradient then
        goes back through its own cells alone. Through one pass over both, batch norm would tie every cell to every other,
        and either gradient would have to go back through all of them.
        """
        sides = (~batch.is_positive, batch.is_positive)
        if self.weigh is None:
            z_i, z_j = project_views(encoder, batch.views)
            negatives, positives = ((z_i[side], z_j[side]) for side in sides)
            return self.two_tasks(negatives, (z_i, z_j) if self.contrasts_all else positives)
        of_negatives, of_positives = (
            encoder.project(torch.cat([view[side] for view in batch.views]))[1] for side in sides
        )
        negatives, _ = _standardised(encoder, of_negatives, of_positives.detach())
        if self.contrasts_all:
            beside, positives = _standardised(encoder, of_negatives, of_positives, again=True)
            return self.two_tasks(
                negatives, (torch.cat([beside[0], positives[0]]), torch.cat([beside[1], positives[1]]))
            )
        _, positives = _standardised(encoder, of_negatives.detach(), of_positives, again=True)
        return self.two_tasks(negatives, positives)

    def chance(self, batch: Batch) -> float:
        """ln(2B − 1) of the cells contrasted."""
        return chance_level(len(batch.is_positive)) if self.contrasts_all else super().chance(batch)


def _standardised(encoder: Encoder, negatives: Tensor, positives: Tensor, again: bool = False) -> tuple[Views, Views]:
    """Both views' projections of either side, standardised over both sides' cells.

    Standardised by themselves the negatives would lie about zero, whatever the similarity loss did. The running
    statistics follow the first time, not when the same rows come ``again``.
    """
    z = encoder.standardise(torch.cat([negatives, positives]), follow=not again)
    (n_i, n_j), (p_i, p_j) = (side.chunk(2) for side in (z[: len(negatives)], z[len(negatives) :]))
    return (n_i, n_j), (p_i, p_j)
