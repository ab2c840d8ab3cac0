"""The two tasks that SLAM-AGS and WeakSupCon share: similarity on negative slides' cells, NT-Xent on positive ones'."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from cytomil.encoders.architecture import Encoder
from cytomil.pretrain.losses import nt_xent_loss, similarity_loss
from cytomil.pretrain.methods.base import Batch, Method, project_views
from cytomil.pretrain.surgery import adaptive_gradient_surgery
from cytomil.settings import PretrainSettings


def slam_ags(settings: PretrainSettings) -> Method:
    """SLAM-AGS (arXiv 2511.14639): both tasks, their gradients reconciled by adaptive gradient surgery."""
    surgery = partial(adaptive_gradient_surgery, rescale=settings.rescale.value)
    return Method(losses=_both_tasks(settings), combine=surgery)


def weaksupcon(settings: PretrainSettings) -> Method:
    """WeakSupCon (Zhang et al., 2025) as SLAM-AGS compares with it: the plain sum of both tasks."""
    return Method(losses=_both_tasks(settings))


def _both_tasks(settings: PretrainSettings) -> Callable[[Encoder, Batch], dict[str, Tensor]]:
    temperature = settings.temperature
    scale = temperature if settings.similarity_scale == "tau" else settings.similarity_scale

    def losses(encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        z_i, z_j = project_views(encoder, batch)
        positive = batch.is_positive
        negatives = torch.cat([z_i[~positive], z_j[~positive]])
        return {
            "similarity": scale * similarity_loss(negatives, temperature),
            "nt_xent": nt_xent_loss(z_i[positive], z_j[positive], temperature),
        }

    return losses
