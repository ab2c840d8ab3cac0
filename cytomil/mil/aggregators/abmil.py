"""ABMIL: gated attention (Ilse, Tomczak, Welling, ICML 2018, arXiv 1802.04712)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cytomil.mil.aggregators.attention import AttentionAggregator
from cytomil.mil.bags import TrainingBag
from cytomil.mil.config import FitMilConfig


class GatedAttention(nn.Module):
    """Eq. 9's logits: hidden (N, hidden_dim) → wᵀ(tanh(V h) ⊙ sigm(U h)), (N, 1); the softmax over the bag is the caller's."""

    def __init__(self, hidden_dim: int, attention_dim: int) -> None:
        super().__init__()
        self.tanh_gate = nn.Linear(hidden_dim, attention_dim)
        self.sigmoid_gate = nn.Linear(hidden_dim, attention_dim)
        self.weight = nn.Linear(attention_dim, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.weight(self.tanh_gate(hidden).tanh() * self.sigmoid_gate(hidden).sigmoid())
        return logits


class ABMIL(AttentionAggregator):
    """One layer, gated attention over the bag (eq. 8 and 9), logistic regression of what it pools.

    Args:
        in_dim: length of an instance's embedding.
        hidden_dim: length of the layer's output; the paper's 500 is rounded.
        attention_dim: length of the gates; the paper's.
    """

    def __init__(self, in_dim: int, hidden_dim: int = 512, attention_dim: int = 128) -> None:
        super().__init__()
        self.config = {"in_dim": in_dim, "hidden_dim": hidden_dim, "attention_dim": attention_dim}
        self.embed = nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.ReLU())
        self.attention = GatedAttention(hidden_dim, attention_dim)
        self.classifier = nn.Linear(hidden_dim, 1)

    @classmethod
    def untrained(cls, bags: Sequence[TrainingBag], settings: FitMilConfig, seed: int) -> Self:
        """See `LearnedAggregator`."""
        return cls(bags[0].dim)

    @property
    def branches(self) -> int:
        """One attention distribution."""
        return 1

    def attend(self, instances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `AttentionAggregator`."""
        hidden = self.embed(instances)
        return hidden, self.attention(hidden), hidden[:, :0]

    def log_odds(self, pooled: Tensor, marks: Tensor) -> Tensor:
        """See `AttentionAggregator`."""
        return self.classifier(pooled[:, 0]).squeeze(1)

    def loss(self, instances: Tensor, label: Tensor, settings: FitMilConfig, generator: torch.Generator) -> Tensor:
        """Cross entropy of the bag's label."""
        hidden, raw, _ = self.attend(instances)
        return self.bag_loss(hidden, raw, label)

    def bag_loss(self, hidden: Tensor, raw: Tensor, label: Tensor) -> Tensor:
        """Cross entropy of the label () of a bag that `attend` read as (N, H), (N, 1)."""
        logit = self.classifier(raw.softmax(dim=0).T @ hidden).view(1)
        return F.binary_cross_entropy_with_logits(logit, label.float().view(1))
