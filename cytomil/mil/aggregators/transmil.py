"""TransMIL: a transformer over the bag (Shao et al., NeurIPS 2021, arXiv 2106.00908)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cytomil.config import Config
from cytomil.mil.aggregators.base import ATTENTION_MEANING, EVIDENCE_MEANING, odds
from cytomil.mil.aggregators.learned import LearnedAggregator
from cytomil.mil.bags import TrainingBag
from cytomil.mil.config import FitConfig, InstanceScore

_LANDMARKS = 128
_PINV_STEPS = 6
_SINGLES = 4096


class NystromAttention(nn.Module):
    """Self-attention through landmarks (Xiong et al., AAAI 2021): time and memory are linear in the bag's size.

    Sequences of up to 128 tokens use the exact softmax. The original's convolution of the values is left out.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, n, dim) → new tokens (B, n, dim), and the first token's attention to all of them (B, n)."""
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.to_qkv(tokens).chunk(3, dim=2))
        n = tokens.shape[1]
        scale = 1 / math.sqrt(q.shape[3])
        if n <= _LANDMARKS:
            left = (q @ k.mT * scale).softmax(dim=3)
            mixed, first = left @ v, left[:, :, 0]
        else:
            # Groups of equal size. Padding of the last one is excluded from every mean.
            pad = -n % _LANDMARKS
            counts = F.pad(torch.ones(n), (0, pad)).view(_LANDMARKS, -1).sum(dim=1).clamp(min=1).unsqueeze(1)
            q_mean, k_mean = (
                F.pad(one, (0, 0, 0, pad)).unflatten(2, (_LANDMARKS, -1)).sum(dim=3) / counts for one in (q, k)
            )
            to_landmarks = (q @ k_mean.mT * scale).softmax(dim=3)
            among = pseudo_inverse((q_mean @ k_mean.mT * scale).softmax(dim=3))
            from_landmarks = (q_mean @ k.mT * scale).softmax(dim=3)
            mixed = to_landmarks @ (among @ (from_landmarks @ v))
            first = (to_landmarks[:, :, :1] @ among @ from_landmarks)[:, :, 0]
        return self.out(mixed.transpose(1, 2).flatten(2)), first.mean(dim=1)


def pseudo_inverse(matrix: Tensor) -> Tensor:
    """Moore-Penrose inverse of square matrices (..., m, m) by the third-order iteration of Razavi et al., as Xiong et al."""
    inverse = matrix.mT / (matrix.abs().sum(dim=-1).amax() * matrix.abs().sum(dim=-2).amax())
    eye = torch.eye(matrix.shape[-1])
    for _ in range(_PINV_STEPS):
        product = matrix @ inverse
        inverse = 0.25 * inverse @ (13 * eye - product @ (15 * eye - product @ (7 * eye - product)))
    return inverse


class TransMIL(LearnedAggregator):
    """Two layers of Nyström attention with a class token, separated by a position encoding by convolutions (PPEG).

    Instances are arranged in a square in the bag's order. TransMIL is the only aggregator that depends on this order, and
    the only one that needs the whole bag in memory. There is no dropout, because parallel fits would share its random
    numbers.

    Args:
        in_dim: length of an instance's embedding.
        dim: length of a token; the paper's 512.
        heads: attention heads; the paper's 8.
    """

    unused = ("precision", "top_fraction")

    meaning: ClassVar[Mapping[InstanceScore, str]] = {
        InstanceScore.EVIDENCE: EVIDENCE_MEANING,
        InstanceScore.ATTENTION: ATTENTION_MEANING,
    }

    def __init__(self, in_dim: int, dim: int = 512, heads: int = 8) -> None:
        super().__init__()
        self.config = {"in_dim": in_dim, "dim": dim, "heads": heads}
        self.embed = nn.Sequential(nn.Linear(in_dim, dim), nn.ReLU())
        self.class_token = nn.Parameter(torch.randn(1, 1, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.layers = nn.ModuleList(NystromAttention(dim, heads) for _ in range(2))
        self.positions = nn.ModuleList(nn.Conv2d(dim, dim, k, padding=k // 2, groups=dim) for k in (7, 5, 3))
        self.classifier = nn.Linear(dim, 2)

    @classmethod
    def untrained(cls, bags: Sequence[TrainingBag], settings: FitConfig, options: Config, seed: int) -> Self:
        """See `LearnedAggregator`."""
        return cls(bags[0].dim)

    def forward(self, instances: Tensor) -> tuple[Tensor, Tensor]:
        """Bags (B, N ≥ 1, in_dim) → logits (B, 2), the class token's attention to the instances in the last layer (B, N)."""
        n = instances.shape[1]
        hidden = self.embed(instances)
        side = math.ceil(math.sqrt(n))
        # As in the paper, the first instances are repeated to fill the square.
        square = hidden[:, torch.arange(side * side) % n]
        tokens = torch.cat([self.class_token.expand(len(hidden), -1, -1), square], dim=1)
        tokens = tokens + self.layers[0](self.norms[0](tokens))[0]
        grid = tokens[:, 1:].mT.unflatten(2, (side, side))
        encoded = grid + sum(convolve(grid) for convolve in self.positions)
        tokens = torch.cat([tokens[:, :1], encoded.flatten(2).mT], dim=1)
        changed, attention = self.layers[1](self.norms[1](tokens))
        logits: Tensor = self.classifier(self.norms[2](tokens + changed)[:, 0])
        return logits, attention[:, 1 : n + 1]

    def loss(self, instances: Tensor, label: Tensor, generator: torch.Generator) -> Tensor:
        """Cross entropy of the bag's label."""
        return F.cross_entropy(self(instances.unsqueeze(0))[0], label.view(1))

    def log_odds_alone(self, instances: Tensor) -> Tensor:
        """Log odds that a bag of one instance alone is positive: (N, D) → (N,)."""
        logits = torch.cat([self(block.unsqueeze(1))[0] for block in instances.split(_SINGLES)])
        return logits[:, 1] - logits[:, 0]

    def read(self, kind: InstanceScore) -> TransMILReading:
        """See `Aggregator.read`."""
        return TransMILReading(self, kind)


class TransMILReading:
    """Collects the whole bag, because every instance attends to all others."""

    def __init__(self, model: TransMIL, kind: InstanceScore) -> None:
        self._model, self._kind = model, kind
        self._blocks: list[Tensor] = []

    def add(self, instances: Tensor) -> None:
        """See `Reading`."""
        self._blocks.append(instances)

    def result(self) -> tuple[float, Tensor]:
        """See `Reading`."""
        instances = torch.cat(self._blocks)
        logits, attention = self._model(instances.unsqueeze(0))
        if self._kind is InstanceScore.EVIDENCE:
            scores = odds(self._model.log_odds_alone(instances))
        else:
            # The landmarks' pseudo-inverse can make an attention slightly negative.
            positive = attention[0].clamp(min=1e-12)
            scores = positive / positive.mean()
        return float(logits.softmax(dim=1)[0, 1]), scores
