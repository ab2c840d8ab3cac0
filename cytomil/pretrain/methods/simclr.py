"""SimCLR (arXiv 2002.05709): contrast all cells, whatever their slide's label."""

from __future__ import annotations

from torch import Tensor

from cytomil.encoders.architecture import Encoder
from cytomil.pretrain.losses import nt_xent_loss
from cytomil.pretrain.methods.base import Batch, Method, project_views
from cytomil.settings import PretrainSettings


def simclr(settings: PretrainSettings) -> Method:
    """NT-Xent over the whole batch."""

    def losses(encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        return {"nt_xent": nt_xent_loss(*project_views(encoder, batch), settings.temperature)}

    return Method(losses=losses)
