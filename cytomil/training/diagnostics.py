"""Detect a collapsed encoder by measures of how much its embeddings still vary."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cytomil.encoders.architecture import Encoder
from cytomil.training.training_encoder import embed_cells

MIN_SPREAD = 0.1
MIN_RANK = 2.0
MIN_VARIATION = 1e-3
MIN_MARGIN_FRACTION = 0.02


def effective_rank(embeddings: Tensor) -> float:
    """Exp of the entropy of the centred embeddings' normalised singular values (Roy & Vetterli, 2007; RankMe).

    Args:
        embeddings: shape (N, D).

    Returns:
        Between 1 (a line, or a single point) and min(N − 1, D).
    """
    centred = embeddings.double() - embeddings.double().mean(dim=0)
    values = torch.linalg.svdvals(centred)
    total = values.sum()
    if total <= 1e-12 * max(1.0, float(embeddings.abs().max())) * embeddings.numel():
        return 1.0
    fraction = values / total
    return float(torch.exp(-torch.special.xlogy(fraction, fraction).sum()))


def spread(embeddings: Tensor) -> float:
    """Mean standard deviation per dimension of the unit-length embeddings, times √D, shape (N, D) → 0 to 1.

    1 means spread over the whole sphere, 0 a single point.
    """
    unit = F.normalize(embeddings.double(), dim=1)
    return float(unit.std(dim=0).mean() * math.sqrt(embeddings.shape[1]))


def mean_cosine(embeddings: Tensor) -> float:
    """Mean cosine over ordered pairs i ≠ j, shape (N ≥ 2, D) → −1 to 1."""
    unit = F.normalize(embeddings.double(), dim=1)
    n = len(unit)
    return float((unit.sum(dim=0).square().sum() - unit.square().sum()) / (n * (n - 1)))


def variation(embeddings: Tensor) -> float:
    """Root mean square about the mean as a fraction of the root mean square, shape (N, D) → 0 to 1; 0 is a point."""
    values = embeddings.double()
    length = values.square().sum(dim=1).mean().sqrt()
    about_mean = (values - values.mean(dim=0)).square().sum(dim=1).mean().sqrt()
    return float(about_mean / length.clamp(min=1e-30))


@dataclass(frozen=True)
class Health:
    """Measures of the embeddings of a fixed sample of training cells, in evaluation mode.

    ``spread`` and ``negatives_mean_cosine`` use directions of z from the method's origin.
    """

    effective_rank: float
    effective_rank_z: float
    spread: float
    negatives_mean_cosine: float
    variation: float

    def collapse_reason(self, margin: float | None, chance: float | None, may_be_line: bool = False) -> str:
        """Why these embeddings count as collapsed; empty if they do not.

        Args:
            margin: nats by which the contrastive loss is below ``chance``; None if no loss has a chance level.
            chance: the contrastive loss of an encoder that distinguishes nothing; None if there is none.
            may_be_line: embeddings on a line are not a collapse. Two perfectly separated classes are two points.
        """
        if self.spread < MIN_SPREAD:
            return f"all cells have nearly the same projection (spread {self.spread:.3f}, below {MIN_SPREAD})"
        if self.variation < MIN_VARIATION:
            return f"z varies by {self.variation:.1e} of its length, less than half precision can represent"
        if not may_be_line and min(self.effective_rank, self.effective_rank_z) < MIN_RANK:
            rank = min(self.effective_rank, self.effective_rank_z)
            return f"the embeddings lie on a line (effective rank {rank:.2f}, below {MIN_RANK:.0f})"
        if margin is not None and chance is not None and margin < MIN_MARGIN_FRACTION * chance:
            return f"the contrastive task is at chance ({margin:.3f} nats below {chance:.3f})"
        return ""


def examine(
    encoder: Encoder, pixels: Tensor, is_positive: Tensor, origin: Tensor | None = None, max_per_side: int = 512
) -> Health:
    """Embed up to ``max_per_side`` evenly spaced cells of each side, without views, and measure the embeddings."""
    sides = [torch.nonzero(is_positive == side).flatten() for side in (False, True)]
    sides = [side[torch.linspace(0, len(side) - 1, min(max_per_side, len(side))).long()] for side in sides]
    h, z = embed_cells(encoder, pixels[torch.cat(sides)])
    centred = z if origin is None else z - origin.cpu()
    negatives_cosine = mean_cosine(centred[: len(sides[0])])
    return Health(effective_rank(h), effective_rank(z), spread(centred), negatives_cosine, variation(z))
