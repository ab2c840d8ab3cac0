"""ABMIL and CLAM: bags pooled by gated attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cytomil.config import Config
from cytomil.mil.aggregators.learned import AttentionAggregator, top_and_bottom
from cytomil.mil.bags import TrainingBag
from cytomil.mil.config import FitConfig


class GatedAttention(nn.Module):
    """The logits of ABMIL's eq. 9: hidden (N, hidden_dim) → wᵀ(tanh(V h) ⊙ sigm(U h)), (N, 1), before the softmax."""

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
    """One layer, gated attention over the bag (eq. 8 and 9), logistic regression of the pooled vector.

    Source: Ilse, Tomczak, Welling, ICML 2018, arXiv 1802.04712.

    Args:
        in_dim: length of an instance's embedding.
        hidden_dim: length of the layer's output; the paper has 500.
        attention_dim: length of the gates; the paper's.
    """

    def __init__(self, in_dim: int, hidden_dim: int = 512, attention_dim: int = 128) -> None:
        super().__init__()
        self.config = {"in_dim": in_dim, "hidden_dim": hidden_dim, "attention_dim": attention_dim}
        self.embed = nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.ReLU())
        self.attention = GatedAttention(hidden_dim, attention_dim)
        self.classifier = nn.Linear(hidden_dim, 1)

    @classmethod
    def untrained(cls, bags: Sequence[TrainingBag], settings: FitConfig, options: Config, seed: int) -> Self:
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

    def loss(self, instances: Tensor, label: Tensor, generator: torch.Generator) -> Tensor:
        """Cross entropy of the bag's label."""
        hidden, raw, _ = self.attend(instances)
        return self.bag_loss(hidden, raw, label)

    def bag_loss(self, hidden: Tensor, raw: Tensor, label: Tensor) -> Tensor:
        """Cross entropy of the label (), from the output of `attend`, (N, H) and (N, 1)."""
        logit = self.classifier(raw.softmax(dim=0).T @ hidden).view(1)
        return F.binary_cross_entropy_with_logits(logit, label.float().view(1))


class CLAM(ABMIL):
    """ABMIL whose instances with the highest and lowest attention also train a clustering layer of the bag's class.

    Source: the single-branch model of Lu et al., Nature Biomedical Engineering 2021, arXiv 2004.09666; written from the
    paper. The ``n_sampled`` instances with the highest attention get the pseudo label 1, as many with the lowest get 0. The
    loss is ``bag_weight`` times the bag's cross entropy plus (1 - ``bag_weight``) times the instances' smooth top-1 SVM
    loss (Berrada et al., 2018), whose margin and temperature are 1 as in the paper.
    """

    n_sampled = 8
    bag_weight = 0.7

    def __init__(self, in_dim: int, hidden_dim: int = 512, attention_dim: int = 256) -> None:
        super().__init__(in_dim, hidden_dim, attention_dim)
        self.clusters = nn.ModuleList(nn.Linear(hidden_dim, 2) for _ in range(2))

    def loss(self, instances: Tensor, label: Tensor, generator: torch.Generator) -> Tensor:
        """See the class."""
        hidden, raw, _ = self.attend(instances)
        chosen = top_and_bottom(raw.squeeze(1), self.n_sampled)
        logits = self.clusters[int(label)](hidden[torch.cat(chosen)])
        pseudo_labels = torch.tensor([1, 0]).repeat_interleave(len(chosen[0]))
        of_instances = smooth_svm_loss(logits, pseudo_labels)
        return self.bag_weight * self.bag_loss(hidden, raw, label) + (1 - self.bag_weight) * of_instances


def smooth_svm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of log Σⱼ exp(1[j ≠ y] + sⱼ - s_y): logits (N, C), labels int64 (N,) → ()."""
    margin = 1 - F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    own = logits.gather(1, labels.unsqueeze(1))
    return (logits + margin - own).logsumexp(dim=1).mean()
