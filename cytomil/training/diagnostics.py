"""Has the encoder collapsed? Measures of how much its embeddings still tell apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cytomil.encoders.architecture import Encoder
from cytomil.training.training_encoder import embed_cells

LEAST_SPREAD = 0.1
LEAST_RANK = 2.0
LEAST_VARIATION = 1e-3
LEAST_MARGIN_SHARE = 0.02


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
    share = values / total
    return float(torch.exp(-torch.special.xlogy(share, share).sum()))


def spread(embeddings: Tensor) -> float:
    """Mean standard deviation a dimension of the unit-length embeddings, times √D: 1 all over the sphere, 0 a point."""
    unit = F.normalize(embeddings.double(), dim=1)
    return float(unit.std(dim=0).mean() * math.sqrt(embeddings.shape[1]))


def mean_cosine(embeddings: Tensor) -> float:
    """Mean cosine over ordered pairs i ≠ j, shape (N ≥ 2, D) → −1 to 1."""
    unit = F.normalize(embeddings.double(), dim=1)
    n = len(unit)
    return float((unit.sum(dim=0).square().sum() - unit.square().sum()) / (n * (n - 1)))


def variation(embeddings: Tensor) -> float:
    """Root mean square of the embeddings about their mean, as a share of their root mean square: 0 a point, at most 1."""
    values = embeddings.double()
    length = values.square().sum(dim=1).mean().sqrt()
    about_mean = (values - values.mean(dim=0)).square().sum(dim=1).mean().sqrt()
    return float(about_mean / length.clamp(min=1e-30))


@dataclass(frozen=True)
class Health:
    """What the embeddings of a fixed sample of training cells look like, measured in evaluation mode.

    Directions (``spread``, ``negatives_mean_cosine``) are those of z as seen from the method's origin.
    """

    effective_rank: float
    effective_rank_z: float
    spread: float
    negatives_mean_cosine: float
    variation: float

    def collapse_reason(self, margin: float | None, chance: float | None, may_be_line: bool = False) -> str:
        """Why these embeddings must be called collapsed; empty if they need not.

        ``margin`` is how far the contrastive loss lies under ``chance``, both None where no loss has a chance level.
        With ``may_be_line``, embeddings on a line are none: two classes, told apart perfectly, are two points.
        """
        if self.spread < LEAST_SPREAD:
            return f"all cells have nearly the same projection (spread {self.spread:.3f}, below {LEAST_SPREAD})"
        if self.variation < LEAST_VARIATION:
            return f"z varies by {self.variation:.1e} of its length, less than half precision can hold"
        if not may_be_line and min(self.effective_rank, self.effective_rank_z) < LEAST_RANK:
            rank = min(self.effective_rank, self.effective_rank_z)
            return f"the embeddings lie on a line (effective rank {rank:.2f}, below {LEAST_RANK:.0f})"
        if margin is not None and chance is not None and margin < LEAST_MARGIN_SHARE * chance:
            return f"the contrastive task is at chance ({margin:.3f} nats under {chance:.3f})"
        return ""


def examine(
    encoder: Encoder, pixels: Tensor, is_positive: Tensor, origin: Tensor | None = None, most: int = 512
) -> Health:
    """Embed up to ``most`` evenly spaced cells of either side as they are, without views, and measure them."""
    sides = [torch.nonzero(is_positive == side).flatten() for side in (False, True)]
    sides = [side[torch.linspace(0, len(side) - 1, min(most, len(side))).long()] for side in sides]
    h, z = embed_cells(encoder, pixels[torch.cat(sides)])
    seen = z if origin is None else z - origin.cpu()
    return Health(effective_rank(h), effective_rank(z), spread(seen), mean_cosine(seen[: len(sides[0])]), variation(z))
