"""SimCLR (arXiv 2002.05709): contrast all cells, ignoring slide labels."""

from __future__ import annotations

from torch import Tensor

from cytomil.encoders.architecture import Encoder
from cytomil.training.losses import chance_level, nt_xent_loss
from cytomil.training.methods.base import Batch, Method, project_views


class SimCLR(Method):
    """NT-Xent over the whole batch."""

    contrast = "nt_xent"

    def losses(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """NT-Xent of both views of all cells."""
        return {"nt_xent": nt_xent_loss(*project_views(encoder, batch.views), self.settings.temperature)}

    def chance(self, batch: Batch) -> float:
        """ln(2B − 1)."""
        return chance_level(len(batch.is_positive))
