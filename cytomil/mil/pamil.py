"""PAMIL: prototype attention-based multiple instance learning."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PAMIL(nn.Module):
    """PAMIL's attention branch (Liu et al., MICCAI 2024, doi 10.1007/978-3-031-72083-3_34) as SLAM-AGS uses it.

    Instances and learnable prototypes pass through one shared layer and are brought to unit length (SLAM-AGS adds the
    normalisation). A gate, tanh of a prototype times sigmoid of an instance, gives each instance an affinity to each
    prototype; a linear layer turns affinities into one attention logit a class, and a softmax over the bag into attention
    scores. Each class pools the bag with its own attention and has a classifier of its own. The original's
    prototype-prediction and instance branches are left out, as SLAM-AGS does by default.

    Args:
        in_dim: length of an instance's embedding.
        n_prototypes: number of prototypes, ≥ 1.
        n_classes: number of bag classes; class 1 is the positive one.
        hidden_dim: length of the shared layer's output.
        attention_dim: length of the gate.
    """

    def __init__(
        self, in_dim: int, n_prototypes: int = 10, n_classes: int = 2, hidden_dim: int = 512, attention_dim: int = 256
    ) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.prototypes = nn.Parameter(torch.randn(n_prototypes, in_dim))
        self.shared = nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.ReLU())
        self.prototype_gate = nn.Sequential(nn.Linear(hidden_dim, attention_dim), nn.Tanh())
        self.instance_gate = nn.Sequential(nn.Linear(hidden_dim, attention_dim), nn.Sigmoid())
        self.attention = nn.Linear(n_prototypes, n_classes)
        self.classifiers = nn.ModuleList(nn.Linear(hidden_dim, 1) for _ in range(n_classes))

    def forward(self, instances: Tensor) -> tuple[Tensor, Tensor]:
        """Instances (N ≥ 1, in_dim) → logits (n_classes,), attention (n_classes, N) whose rows sum to 1."""
        logits, attention, _ = self._pool(instances)
        return logits, attention

    def forward_in_blocks(self, blocks: Callable[[], Iterable[Tensor]]) -> tuple[Tensor, Tensor]:
        """What `forward` gives for the blocks, each (n, in_dim), laid end to end, with one block in memory at a time.

        ``blocks`` is called twice: the attention of the whole bag must be known before it can be pooled.
        """
        raw = torch.cat([self.attention(self._affinity(self._hidden(block))) for block in blocks()]).T
        attention = raw.softmax(dim=1)
        pooled, start = torch.zeros(len(attention), self.hidden_dim), 0
        for block in blocks():
            pooled += attention[:, start : start + len(block)] @ self._hidden(block)
            start += len(block)
        return self._classify(pooled), attention

    def instance_logits(self, instances: Tensor) -> Tensor:
        """The logits of each instance in a bag of its own: (N, in_dim) → (N, n_classes).

        Such a bag gives all attention to its one instance, so these are `forward`'s logits without the loop.
        """
        hidden = self._hidden(instances)
        return torch.cat([classify(hidden) for classify in self.classifiers], dim=1)

    def training_loss(self, instances: Tensor, label: Tensor, cluster_weight: float) -> Tensor:
        """Cross entropy of the bag's label () plus ``cluster_weight`` times the two cluster losses.

        The cluster losses ask every instance to resemble one prototype and every prototype to have an instance: one
        minus the mean, over instances and over prototypes, of the greatest softmaxed affinity.
        """
        logits, _, affinity = self._pool(instances)
        share = affinity.softmax(dim=1)
        cluster = (1 - share.amax(dim=1).mean()) + (1 - share.amax(dim=0).mean())
        return F.cross_entropy(logits.unsqueeze(0), label.view(1)) + cluster_weight * cluster

    def _pool(self, instances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if instances.ndim != 2 or len(instances) == 0:
            raise ValueError(f"PAMIL needs instances of shape (N ≥ 1, D), got {tuple(instances.shape)}")
        hidden = self._hidden(instances)
        affinity = self._affinity(hidden)
        attention = self.attention(affinity).T.softmax(dim=1)
        return self._classify(attention @ hidden), attention, affinity

    def _hidden(self, vectors: Tensor) -> Tensor:
        return F.normalize(self.shared(vectors), dim=1)

    def _affinity(self, hidden: Tensor) -> Tensor:
        return self.instance_gate(hidden) @ self.prototype_gate(self._hidden(self.prototypes)).T

    def _classify(self, pooled: Tensor) -> Tensor:
        unit = F.normalize(pooled, dim=1)
        return torch.cat([classify(row) for classify, row in zip(self.classifiers, unit, strict=True)])
