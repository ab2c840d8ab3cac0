"""PAMIL: prototype attention-based multiple instance learning.

Source: Liu et al., MICCAI 2024, doi 10.1007/978-3-031-72083-3_34, as SLAM-AGS uses it. The prototype and the instance branch
follow a public adaptation of the original, including its factors; docstrings state the differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cytomil.config import Config as BaseConfig
from cytomil.mil.aggregators.learned import AttentionAggregator, top_and_bottom
from cytomil.mil.bags import TrainingBag
from cytomil.mil.config import FitConfig
from cytomil.precision import pick_precision

_CLUSTER_WEIGHT = 0.005
_MIN_NORM = 1e-12


class Prototypes(StrEnum):
    """How prototypes are initialised."""

    RANDOM = "random"
    KMEANS = "kmeans"


class PAMILConfig(BaseConfig):
    """PAMIL's own settings."""

    n_prototypes: int = Field(10, ge=1, description="number of PAMIL's prototypes")
    prototypes: Prototypes = Field(Prototypes.RANDOM, description="how PAMIL's prototypes are initialised")
    prototype_branch: bool = Field(
        False, description="PAMIL: add the original's prototype branch, which classifies the bag by its prototypes"
    )
    instance_branch: bool = Field(
        False, description="PAMIL: add the original's instance branch, which trains on pseudo labels of instances"
    )
    cluster_weight: float = Field(_CLUSTER_WEIGHT, ge=0, description="weight of each of PAMIL's two cluster losses")


class PAMIL(AttentionAggregator):
    """PAMIL's attention branch, and optionally its two other branches.

    Instances and learnable prototypes pass through one shared layer and are scaled to unit length (SLAM-AGS adds the
    scaling). A gate, tanh of a prototype times sigmoid of an instance, gives each instance an affinity to each prototype.
    A linear layer turns affinities into one attention logit per class, and a softmax over the bag into attention
    scores. Each class pools the bag with its own attention and has its own classifier. SLAM-AGS omits the original's
    prototype and instance branches, and they are off by default here.

    Args:
        in_dim: length of an instance's embedding.
        n_prototypes: number of prototypes P, ≥ 1.
        n_classes: number of bag classes C; class 1 is the positive one.
        hidden_dim: length H of the shared layer's output.
        attention_dim: length of the gate.
        prototype_branch: classify the bag by its prototypes too, see `PrototypeBranch`.
        instance_branch: train on pseudo labels of instances too, see `InstanceBranch`.
        cluster_weight: weight of each of the two cluster losses in training.
    """

    unused = ("top_fraction",)

    Config = PAMILConfig

    def __init__(
        self,
        in_dim: int,
        n_prototypes: int = 10,
        n_classes: int = 2,
        hidden_dim: int = 512,
        attention_dim: int = 256,
        prototype_branch: bool = False,
        instance_branch: bool = False,
        cluster_weight: float = _CLUSTER_WEIGHT,
    ) -> None:
        super().__init__()
        # Without cluster_weight, which affects only training and is not in older cards.
        self.config = {
            "in_dim": in_dim,
            "n_prototypes": n_prototypes,
            "n_classes": n_classes,
            "hidden_dim": hidden_dim,
            "attention_dim": attention_dim,
            "prototype_branch": prototype_branch,
            "instance_branch": instance_branch,
        }
        self.cluster_weight = cluster_weight
        self.prototypes = nn.Parameter(torch.randn(n_prototypes, in_dim))
        self.shared = nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.ReLU())
        self.prototype_gate = nn.Sequential(nn.Linear(hidden_dim, attention_dim), nn.Tanh())
        self.instance_gate = nn.Sequential(nn.Linear(hidden_dim, attention_dim), nn.Sigmoid())
        self.attention = nn.Linear(n_prototypes, n_classes)
        self.classifiers = nn.ModuleList(nn.Linear(hidden_dim, 1) for _ in range(n_classes))
        self.by_prototypes = PrototypeBranch(hidden_dim, n_classes) if prototype_branch else None
        self.by_instances = InstanceBranch(hidden_dim, n_classes) if instance_branch else None

    @classmethod
    def untrained(cls, bags: Sequence[TrainingBag], settings: FitConfig, options: BaseConfig, seed: int) -> Self:
        """See `LearnedAggregator`."""
        assert isinstance(options, PAMILConfig)
        model = cls(
            bags[0].dim,
            options.n_prototypes,
            prototype_branch=options.prototype_branch,
            instance_branch=options.instance_branch,
            cluster_weight=options.cluster_weight,
        )
        if options.prototypes is Prototypes.KMEANS:
            start = kmeans_prototypes([np.asarray(bag.values) for bag in bags], options.n_prototypes, seed)
            model.prototypes.data.copy_(torch.from_numpy(start))
        return model

    @classmethod
    def fitted_in(cls, settings: FitConfig) -> torch.dtype:
        """See `Aggregator`. Weights, softmaxes and losses are always float32."""
        return pick_precision(settings.precision, torch.device("cpu"))

    @property
    def branches(self) -> int:
        """One attention distribution per class."""
        return len(self.classifiers)

    def forward(self, instances: Tensor) -> tuple[Tensor, Tensor]:
        """Instances (N ≥ 1, in_dim) → logits (n_classes,), attention (n_classes, N) whose rows sum to 1.

        Raises `ValueError` for another shape.
        """
        hidden, raw, marks = self.attend(instances)
        attention, pooled = _pool(hidden, raw)
        attended, by_prototypes = self.logits(pooled.unsqueeze(0), marks.amax(dim=0, keepdim=True))
        return self._joint(attended, by_prototypes)[0], attention

    def attend(self, instances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `AttentionAggregator`; marks are the affinities (N, P)."""
        if instances.ndim != 2 or len(instances) == 0:
            raise ValueError(f"PAMIL needs instances of shape (N ≥ 1, D), got {tuple(instances.shape)}")
        hidden = self._hidden(instances)
        layer, dtype = self.instance_gate[0], hidden.dtype
        assert isinstance(layer, nn.Linear)
        gate = F.linear(hidden, layer.weight.to(dtype), layer.bias.to(dtype)).sigmoid()
        prototypes = self.prototype_gate(self._hidden(self.prototypes))
        affinity = (gate @ prototypes.to(dtype).T).float()
        return hidden, self.attention(affinity), affinity

    def logits(self, pooled: Tensor, marks: Tensor) -> tuple[Tensor, Tensor | None]:
        """Pooled bags (B, C, H) and their maximum affinities (B, P) → logits (B, C) of attention and of prototypes.

        Each class classifies what its own attention pooled. The second is None without the prototype branch.
        """
        unit = F.normalize(pooled, dim=2)
        attended = torch.cat([classify(unit[:, c]) for c, classify in enumerate(self.classifiers)], dim=1)
        if self.by_prototypes is None:
            return attended, None
        return attended, self.by_prototypes(marks, self._hidden(self.prototypes))

    def log_odds(self, pooled: Tensor, marks: Tensor) -> Tensor:
        """See `AttentionAggregator`."""
        joint = self._joint(*self.logits(pooled, marks))
        return joint[:, 1] - joint[:, 0]

    def loss(self, instances: Tensor, label: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Cross entropy of the bag's label () plus ``cluster_weight`` times the two cluster losses.

        The cluster losses pull every instance towards one prototype, and every prototype towards an instance. They are
        1 minus the mean of the maximum softmaxed affinity, over instances and over prototypes. Branches add their own.
        """
        hidden, raw, affinity = self.attend(instances)
        attention, pooled = _pool(hidden, raw)
        attended, by_prototypes = self.logits(pooled.unsqueeze(0), affinity.amax(dim=0, keepdim=True))
        assigned = affinity.softmax(dim=1)
        cluster = (1 - assigned.amax(dim=1).mean()) + (1 - assigned.amax(dim=0).mean())
        logits = self._joint(attended, by_prototypes)
        loss = F.cross_entropy(logits, label.view(1)) + self.cluster_weight * cluster
        if by_prototypes is not None:
            consistency = PrototypeBranch.consistency(attended[0], by_prototypes[0])
            loss = loss + PrototypeBranch.consistency_weight * consistency
        if self.by_instances:
            loss = loss + self.by_instances.weight * self.by_instances(hidden.float(), attention, label)
        return loss

    def _joint(self, attended: Tensor, by_prototypes: Tensor | None) -> Tensor:
        """The bag's logits, from attention's and the prototypes'."""
        if by_prototypes is None:
            return attended
        return (1 - PrototypeBranch.share) * attended + PrototypeBranch.share * by_prototypes

    def _hidden(self, vectors: Tensor) -> Tensor:
        layer = self.shared[0]
        assert isinstance(layer, nn.Linear)
        hidden: Tensor = UnitHidden.apply(vectors, layer.weight, layer.bias)
        return hidden


class PrototypeBranch(nn.Module):
    """Classifies a bag by the prototypes that it contains, independently of the attention.

    The presence of prototype p is s_p = max_n a_np, the maximum affinity of any of the bag's instances n to it. With
    m = max_p s_p, prototypes are averaged with weights softmax_p(s_p / |m|), and a linear layer gives the classes' logits.
    The bag's logits are (1 - ``share``) times attention's plus ``share`` times these. The original divides by m itself,
    which reverses the order of the prototypes if all affinities are negative.

    Args:
        hidden_dim: length H of the shared layer's output.
        n_classes: number of bag classes C.
    """

    share = 0.5
    consistency_weight = 0.1

    def __init__(self, hidden_dim: int, n_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(hidden_dim, n_classes)

    def forward(self, max_affinity: Tensor, prototypes: Tensor) -> Tensor:
        """Maximum affinities (..., P) and prototypes behind the shared layer (P, H) → logits (..., n_classes)."""
        scale = max_affinity.amax(dim=-1, keepdim=True).abs()
        weights = (max_affinity / scale.clamp(min=torch.finfo(scale.dtype).tiny)).softmax(dim=-1)
        logits: Tensor = self.classifier(weights @ prototypes)
        return logits

    @staticmethod
    def consistency(attended: Tensor, own: Tensor) -> Tensor:
        """KL(own ‖ attended) of both branches' logits, (n_classes,) each → () ≥ 0. No gradient flows into ``own``."""
        return F.kl_div(attended.log_softmax(dim=0), own.detach().log_softmax(dim=0), reduction="sum", log_target=True)


class InstanceBranch(nn.Module):
    """Classifies instances by pseudo labels that attention assigns, one classifier per class, in training only.

    In the classifier of the bag's own class, the ``n_sampled`` instances with the highest attention are positive and as
    many with the lowest are negative. In every other class's classifier, those with the highest are negative. The adaptation
    uses the positive class's attention for all classes. Here each class has its own, as in CLAM, the source of the idea.

    Args:
        hidden_dim: length H of the shared layer's output.
        n_classes: number of bag classes C.
    """

    n_sampled = 8
    weight = 0.5

    def __init__(self, hidden_dim: int, n_classes: int) -> None:
        super().__init__()
        self.classifiers = nn.ModuleList(nn.Linear(hidden_dim, 2) for _ in range(n_classes))

    def forward(self, hidden: Tensor, attention: Tensor, label: Tensor) -> Tensor:
        """Hidden (N, H), attention (C, N), the bag's label, int64 () → the mean cross entropy over classes, ()."""
        losses = []
        for c, classify in enumerate(self.classifiers):
            top, bottom = top_and_bottom(attention[c], self.n_sampled)
            chosen = torch.cat([top, bottom]) if c == int(label) else top
            pseudo_labels = torch.zeros(len(chosen), dtype=torch.int64)
            pseudo_labels[: len(top)] = int(c == int(label))
            losses.append(F.cross_entropy(classify(hidden[chosen]), pseudo_labels))
        return torch.stack(losses).mean()


class UnitHidden(torch.autograd.Function):
    """normalize(relu(x Wᵀ + b)), rows of unit length: x (N, D), W (H, D), b (H,) → (N, H), computed in x's dtype.

    A single autograd step replaces several, whose overhead took most of a fit's time outside matrix products. With
    r = relu(x Wᵀ + b) and h = r / ‖r‖, a gradient g of h becomes (g - h (g·h)) / ‖r‖ where r > 0, and 0 elsewhere. A row
    whose r is all 0 stays 0 and passes no gradient on.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """See the class."""
        ctx.of = weight.dtype
        weight = weight.to(x.dtype)
        hidden = torch.addmm(bias.to(x.dtype), x, weight.T).relu_()
        inverse = torch.linalg.vector_norm(hidden, dim=1, keepdim=True).clamp_min_(_MIN_NORM).reciprocal_()
        hidden *= inverse
        ctx.save_for_backward(x, weight, hidden, inverse)
        return hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """See the class."""
        x, weight, hidden, inverse = ctx.saved_tensors
        along = torch.linalg.vecdot(gradient, hidden, dim=1).unsqueeze(1)
        before = torch.addcmul(gradient, hidden, along, value=-1).mul_(inverse)
        before = torch.ops.aten.threshold_backward(before, hidden, 0)
        of_x = before @ weight if ctx.needs_input_grad[0] else None
        return of_x, (before.T @ x).to(ctx.of), before.sum(dim=0, dtype=ctx.of)


def kmeans_prototypes(bags: Sequence[np.ndarray], n_prototypes: int, seed: int) -> np.ndarray:
    """Cluster each bag (N, D) by k-means, then all bags' centres, as the original does → (n_prototypes, D) float32.

    A bag with fewer instances than prototypes contributes all of them. Raises `ValueError` if all bags together have fewer.
    """
    from sklearn.cluster import KMeans

    def centres(points: np.ndarray) -> np.ndarray:
        if len(points) <= n_prototypes:
            return points
        return KMeans(n_prototypes, n_init=1, random_state=seed).fit(points).cluster_centers_

    pooled = np.concatenate([centres(bag) for bag in bags])
    if len(pooled) < n_prototypes:
        raise ValueError(
            f"{n_prototypes} prototypes need at least as many instances, but all bags together have {len(pooled)}"
        )
    return centres(pooled).astype(np.float32)


def _pool(hidden: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden (N, H) and attention logits (N, C) → attention (C, N) and pooled vectors (C, H)."""
    attention = raw.T.softmax(dim=1)
    return attention, (attention.to(hidden.dtype) @ hidden).float()
