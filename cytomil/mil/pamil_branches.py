"""The two further branches of the original PAMIL (Liu et al., MICCAI 2024), which SLAM-AGS leaves out by default.

Written from what the public adaptation of the original computes, its factors among it; where ours differs is said here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cytomil.mil.aggregators.attention import most_and_least


class PrototypeBranch(nn.Module):
    """Classifies a bag by its prototypes: which of them it holds says what it is, however its instances are weighed.

    Prototype p's presence is the greatest affinity a_np that any of the bag's instances n has to it. With
    s_p = max_n a_np and m = max_p s_p, the prototypes are averaged with weights softmax_p(s_p / |m|) and a linear layer
    gives the classes' logits. The bag's logits become (1 - ``share``) times the attention's plus ``share`` times these.
    The original divides by m itself, which would turn the order of prototypes over where all affinities are negative.

    Args:
        hidden_dim: length of the shared layer's output.
        n_classes: number of bag classes.
    """

    share = 0.5
    consistency_weight = 0.1

    def __init__(self, hidden_dim: int, n_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(hidden_dim, n_classes)

    def forward(self, greatest_affinity: Tensor, prototypes: Tensor) -> Tensor:
        """Greatest affinities (..., P) and prototypes behind the shared layer (P, H) → logits (..., n_classes)."""
        most = greatest_affinity.amax(dim=-1, keepdim=True).abs()
        weights = (greatest_affinity / most.clamp(min=torch.finfo(most.dtype).tiny)).softmax(dim=-1)
        logits: Tensor = self.classifier(weights @ prototypes)
        return logits

    def mixed(self, attended: Tensor, own: Tensor) -> Tensor:
        """The attention's logits and this branch's, of one shape, → the bag's."""
        return (1 - self.share) * attended + self.share * own

    @staticmethod
    def consistency(attended: Tensor, own: Tensor) -> Tensor:
        """KL(own ‖ attended) of both branches' logits (n_classes,), () ≥ 0: the attention is to say what the prototypes say.

        No gradient flows into ``own``.
        """
        return F.kl_div(attended.log_softmax(dim=0), own.detach().log_softmax(dim=0), reduction="sum", log_target=True)


class InstanceBranch(nn.Module):
    """Classifies instances by pseudo labels that attention gives them, a classifier a class, in training alone.

    In the classifier of the bag's own class its ``n_sampled`` most attended instances speak for the class and as many of
    the least attended do not; in every other class's the most attended do not either. The adaptation takes the positive
    class's attention for every class; here, as in CLAM, from which the idea comes, each class has its own.

    Args:
        hidden_dim: length of the shared layer's output.
        n_classes: number of bag classes.
    """

    n_sampled = 8
    weight = 0.5

    def __init__(self, hidden_dim: int, n_classes: int) -> None:
        super().__init__()
        self.classifiers = nn.ModuleList(nn.Linear(hidden_dim, 2) for _ in range(n_classes))

    def forward(self, hidden: Tensor, attention: Tensor, label: Tensor) -> Tensor:
        """Hidden (N, H), attention (n_classes, N), the bag's label, int64 () → the mean cross entropy over classes, ()."""
        of_classes = []
        for c, classify in enumerate(self.classifiers):
            most, least = most_and_least(attention[c], self.n_sampled)
            chosen = torch.cat([most, least]) if c == int(label) else most
            speaks = torch.zeros(len(chosen), dtype=torch.int64)
            speaks[: len(most)] = int(c == int(label))
            of_classes.append(F.cross_entropy(classify(hidden[chosen]), speaks))
        return torch.stack(of_classes).mean()
