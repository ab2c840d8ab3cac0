"""Weak supervision: every cell takes its slide's label, and the encoder learns to predict it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from cytomil.encoders.architecture import Encoder
from cytomil.pretrain.methods.base import Batch, Method
from cytomil.settings import PretrainSettings


def weakly_supervised(settings: PretrainSettings) -> Method:
    """Cross entropy of a linear head on the projection z against the slide's label, one view a cell.

    The head reads z, not h, so that the layer embedded by default is a trained one.
    """
    head = nn.Linear(settings.projection_dim, 2)

    def losses(encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        (view,) = batch.views
        _, z = encoder(view)
        return {"classification": F.cross_entropy(head(z), batch.is_positive.long())}

    return Method(losses=losses, n_views=1, head=head)
