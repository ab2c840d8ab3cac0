"""CLAM, single branch (Lu et al., Nature Biomedical Engineering 2021, arXiv 2004.09666); written from the paper."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cytomil.mil.aggregators.abmil import ABMIL
from cytomil.mil.aggregators.attention import most_and_least
from cytomil.mil.config import FitMilConfig


class CLAM(ABMIL):
    """Gated attention whose most and least attended instances also train a clustering layer of the bag's own class.

    The bag's label makes pseudo labels: of the ``n_sampled`` most attended instances, that they speak for it; of as many
    of the least attended, that they do not. The loss is ``bag_weight`` times the bag's cross entropy plus the rest times
    the instances' smooth top-1 SVM loss (Berrada et al., 2018), whose margin and temperature are 1 as in the paper.
    """

    n_sampled = 8
    bag_weight = 0.7

    def __init__(self, in_dim: int, hidden_dim: int = 512, attention_dim: int = 256) -> None:
        super().__init__(in_dim, hidden_dim, attention_dim)
        self.clusters = nn.ModuleList(nn.Linear(hidden_dim, 2) for _ in range(2))

    def loss(self, instances: Tensor, label: Tensor, settings: FitMilConfig, generator: torch.Generator) -> Tensor:
        """See the class."""
        hidden, raw, _ = self.attend(instances)
        chosen = most_and_least(raw.squeeze(1), self.n_sampled)
        logits = self.clusters[int(label)](hidden[torch.cat(chosen)])
        speaks = torch.tensor([1, 0]).repeat_interleave(len(chosen[0]))
        return self.bag_weight * self.bag_loss(hidden, raw, label) + (1 - self.bag_weight) * smooth_svm_loss(
            logits, speaks
        )


def smooth_svm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of log Σⱼ exp(1[j ≠ y] + sⱼ - s_y): logits (N, C), labels int64 (N,) → ()."""
    margin = 1 - F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    own = logits.gather(1, labels.unsqueeze(1))
    return (logits + margin - own).logsumexp(dim=1).mean()
