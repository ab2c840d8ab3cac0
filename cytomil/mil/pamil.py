"""PAMIL: prototype attention-based multiple instance learning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cytomil.mil.aggregators.attention import AttentionAggregator
from cytomil.mil.bags import TrainingBag
from cytomil.mil.config import FitMilConfig, Prototypes
from cytomil.mil.pamil_branches import InstanceBranch, PrototypeBranch
from cytomil.mil.prototypes import kmeans_prototypes
from cytomil.mil.unit_hidden import UnitHidden
from cytomil.precision import pick_precision


@dataclass(frozen=True)
class _Read:
    """A bag read at once: hidden (N, H), affinity (N, P), attention (C, N), the bag's logits and each branch's (C,)."""

    hidden: Tensor
    affinity: Tensor
    attention: Tensor
    logits: Tensor
    attended: Tensor
    by_prototypes: Tensor | None


class PAMIL(AttentionAggregator):
    """PAMIL's attention branch (Liu et al., MICCAI 2024, doi 10.1007/978-3-031-72083-3_34) as SLAM-AGS uses it.

    Instances and learnable prototypes pass through one shared layer and are brought to unit length (SLAM-AGS adds the
    normalisation). A gate, tanh of a prototype times sigmoid of an instance, gives each instance an affinity to each
    prototype; a linear layer turns affinities into one attention logit a class, and a softmax over the bag into attention
    scores. Each class pools the bag with its own attention and has a classifier of its own. The original's
    prototype-prediction and instance branches are off unless asked for, as in SLAM-AGS.

    Args:
        in_dim: length of an instance's embedding.
        n_prototypes: number of prototypes, ≥ 1.
        n_classes: number of bag classes; class 1 is the positive one.
        hidden_dim: length of the shared layer's output.
        attention_dim: length of the gate.
        prototype_branch: let prototypes have a say in the bag's logits, see `PrototypeBranch`.
        instance_branch: train on pseudo labels of instances too, see `InstanceBranch`.
    """

    def __init__(
        self,
        in_dim: int,
        n_prototypes: int = 10,
        n_classes: int = 2,
        hidden_dim: int = 512,
        attention_dim: int = 256,
        prototype_branch: bool = False,
        instance_branch: bool = False,
    ) -> None:
        super().__init__()
        self.config = {
            "in_dim": in_dim,
            "n_prototypes": n_prototypes,
            "n_classes": n_classes,
            "hidden_dim": hidden_dim,
            "attention_dim": attention_dim,
            "prototype_branch": prototype_branch,
            "instance_branch": instance_branch,
        }
        self.prototypes = nn.Parameter(torch.randn(n_prototypes, in_dim))
        self.shared = nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.ReLU())
        self.prototype_gate = nn.Sequential(nn.Linear(hidden_dim, attention_dim), nn.Tanh())
        self.instance_gate = nn.Sequential(nn.Linear(hidden_dim, attention_dim), nn.Sigmoid())
        self.attention = nn.Linear(n_prototypes, n_classes)
        self.classifiers = nn.ModuleList(nn.Linear(hidden_dim, 1) for _ in range(n_classes))
        self.by_prototypes = PrototypeBranch(hidden_dim, n_classes) if prototype_branch else None
        self.by_instances = InstanceBranch(hidden_dim, n_classes) if instance_branch else None

    def forward(self, instances: Tensor) -> tuple[Tensor, Tensor]:
        """Instances (N ≥ 1, in_dim) → logits (n_classes,), attention (n_classes, N) whose rows sum to 1."""
        read = self._read(instances)
        return read.logits, read.attention

    @classmethod
    def untrained(cls, bags: Sequence[TrainingBag], settings: FitMilConfig, seed: int) -> Self:
        """See `LearnedAggregator`."""
        model = cls(
            bags[0].dim,
            settings.n_prototypes,
            prototype_branch=settings.prototype_branch,
            instance_branch=settings.instance_branch,
        )
        if settings.prototypes is Prototypes.KMEANS:
            start = kmeans_prototypes([np.asarray(bag.values) for bag in bags], settings.n_prototypes, seed)
            model.prototypes.data.copy_(torch.from_numpy(start))
        return model

    @classmethod
    def fitted_in(cls, settings: FitMilConfig) -> torch.dtype:
        """See `Aggregator`; weights, softmaxes and losses stay float32 in any case."""
        return pick_precision(settings.precision, torch.device("cpu"))

    @property
    def branches(self) -> int:
        """One attention distribution a class."""
        return len(self.classifiers)

    def attend(self, instances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `AttentionAggregator`; marks are the affinities, for the prototype branch."""
        hidden = self._hidden(instances)
        affinity = self._affinity(hidden)
        return hidden, self.attention(affinity), affinity if self.by_prototypes else affinity[:, :0]

    def log_odds(self, pooled: Tensor, marks: Tensor) -> Tensor:
        """See `AttentionAggregator`; each class classifies what its own attention pooled."""
        unit = F.normalize(pooled, dim=2)
        logits = torch.cat([classify(unit[:, c]) for c, classify in enumerate(self.classifiers)], dim=1)
        if self.by_prototypes:
            logits = self.by_prototypes.mixed(logits, self.by_prototypes(marks, self._hidden(self.prototypes)))
        return logits[:, 1] - logits[:, 0]

    def loss(self, instances: Tensor, label: Tensor, settings: FitMilConfig, generator: torch.Generator) -> Tensor:
        """See `LearnedAggregator`."""
        return self.training_loss(instances, label, settings.cluster_weight)

    def training_loss(self, instances: Tensor, label: Tensor, cluster_weight: float) -> Tensor:
        """Cross entropy of the bag's label () plus ``cluster_weight`` times the two cluster losses.

        The cluster losses ask every instance to resemble one prototype and every prototype to have an instance: one
        minus the mean, over instances and over prototypes, of the greatest softmaxed affinity. Branches add their own.
        """
        read = self._read(instances)
        share = read.affinity.softmax(dim=1)
        cluster = (1 - share.amax(dim=1).mean()) + (1 - share.amax(dim=0).mean())
        loss = F.cross_entropy(read.logits.unsqueeze(0), label.view(1)) + cluster_weight * cluster
        if self.by_prototypes and read.by_prototypes is not None:
            branch = self.by_prototypes
            loss = loss + branch.consistency_weight * branch.consistency(read.attended, read.by_prototypes)
        if self.by_instances:
            hidden = read.hidden.float()
            loss = loss + self.by_instances.weight * self.by_instances(hidden, read.attention, label)
        return loss

    def _read(self, instances: Tensor) -> _Read:
        if instances.ndim != 2 or len(instances) == 0:
            raise ValueError(f"PAMIL needs instances of shape (N ≥ 1, D), got {tuple(instances.shape)}")
        hidden = self._hidden(instances)
        affinity = self._affinity(hidden)
        attention = self.attention(affinity).T.softmax(dim=1)
        pooled = attention.to(hidden.dtype) @ hidden
        unit = F.normalize(pooled.float(), dim=1)
        attended = torch.cat([classify(row) for classify, row in zip(self.classifiers, unit, strict=True)])
        if self.by_prototypes is None:
            return _Read(hidden, affinity, attention, attended, attended, None)
        own = self.by_prototypes(affinity.amax(dim=0), self._hidden(self.prototypes))
        return _Read(hidden, affinity, attention, self.by_prototypes.mixed(attended, own), attended, own)

    def _hidden(self, vectors: Tensor) -> Tensor:
        layer = self.shared[0]
        assert isinstance(layer, nn.Linear)
        hidden: Tensor = UnitHidden.apply(vectors, layer.weight, layer.bias)
        return hidden

    def _affinity(self, hidden: Tensor) -> Tensor:
        layer, dtype = self.instance_gate[0], hidden.dtype
        assert isinstance(layer, nn.Linear)
        gate = F.linear(hidden, layer.weight.to(dtype), layer.bias.to(dtype)).sigmoid()
        prototypes = self.prototype_gate(self._hidden(self.prototypes))
        return (gate @ prototypes.to(dtype).T).float()
