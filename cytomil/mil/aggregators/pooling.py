"""Bags pooled by the mean, the maximum, the top, or gated attention: ABMIL, CLAM and DTFD-MIL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cytomil.config import Config
from cytomil.mil.aggregators.base import EVIDENCE_MEANING, Gathered, PooledReading, odds, top_count
from cytomil.mil.aggregators.learned import AttentionAggregator, LearnedAggregator, top_and_bottom
from cytomil.mil.bags import TrainingBag
from cytomil.mil.config import FitConfig, InstanceScore


class TopPooling(LearnedAggregator):
    """Logistic regression on the mean of a bag's highest instance logits, which are linear in the embeddings.

    The bag's logit is the mean over the top fraction ``share`` of its instances, at least one. A fraction of 0 is max
    pooling. A fraction of 1 is mean pooling, which equals logistic regression on the bag's mean embedding.

    Args:
        in_dim: length of an instance's embedding.
        share: fraction of the instances that are pooled, 0 (one instance) to 1 (all).
    """

    unused: ClassVar[tuple[str, ...]] = ("precision",)

    def __init__(self, in_dim: int, share: float) -> None:
        super().__init__()
        self.config = {"in_dim": in_dim, "share": share}
        self.share = share
        self.linear = nn.Linear(in_dim, 1)

    @classmethod
    def untrained(cls, bags: Sequence[TrainingBag], settings: FitConfig, options: Config, seed: int) -> Self:
        """See `LearnedAggregator`."""
        return cls(bags[0].dim, settings.top_fraction)

    def instance_logits(self, instances: Tensor) -> Tensor:
        """Log odds of each instance, (N, D) → (N,)."""
        return self.linear(instances).squeeze(1)

    def pool(self, logits: Tensor) -> Tensor:
        """Instance logits (N,) → the bag's logit ()."""
        return logits.topk(top_count(len(logits), self.share)).values.mean()

    def loss(self, instances: Tensor, label: Tensor, generator: torch.Generator) -> Tensor:
        """Cross entropy of the bag's label."""
        return F.binary_cross_entropy_with_logits(self.pool(self.instance_logits(instances)), label.float())

    def read(self, kind: InstanceScore) -> PooledReading:
        """See `Aggregator.read`. An instance's score is the odds of a bag of that instance alone."""
        return PooledReading(self.instance_logits, lambda logits: float(self.pool(logits).sigmoid()), odds)


class MeanPooling(TopPooling):
    """`TopPooling` over all instances."""

    unused = ("precision", "top_fraction")

    @classmethod
    def untrained(cls, bags: Sequence[TrainingBag], settings: FitConfig, options: Config, seed: int) -> Self:
        """See `LearnedAggregator`."""
        return cls(bags[0].dim, 1.0)


class MaxPooling(TopPooling):
    """`TopPooling` over the instance with the highest logit."""

    unused = ("precision", "top_fraction")

    @classmethod
    def untrained(cls, bags: Sequence[TrainingBag], settings: FitConfig, options: Config, seed: int) -> Self:
        """See `LearnedAggregator`."""
        return cls(bags[0].dim, 0.0)


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

    unused = ("precision", "top_fraction")

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
    paper. The ``n_sampled`` instances with the highest attention get the pseudo label 1. As many with the lowest get 0.
    These train the layer by the smooth top-1 SVM loss (Berrada et al., 2018), with margin and temperature 1 as in the
    paper. The bag's cross entropy has the weight ``bag_weight`` and the instances' loss has the weight 1 - ``bag_weight``.
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


class DTFDMIL(LearnedAggregator):
    """Splits a bag into pseudo-bags. One attention model pools each of them (tier 1), another pools the results (tier 2).

    The paper has four distillations. This one is AFS, aggregated feature selection: a pseudo-bag is represented by its
    features pooled by attention. The loss is the cross entropy of tier 2 plus the mean cross entropy of tier 1's pseudo-bags.

    In training, the split is random in every step, as in the paper. In use, the pseudo-bag is computed from the bytes of an
    instance, so that the result is deterministic and does not depend on the order.

    Args:
        in_dim: length of an instance's embedding.
        n_pseudo_bags: the paper uses 5 on CAMELYON16; fewer if the bag has fewer instances.
        hidden_dim: length of the shared layer's output.
        attention_dim: length of the gates.
    """

    unused = ("precision", "top_fraction")

    meaning: ClassVar[Mapping[InstanceScore, str]] = {InstanceScore.EVIDENCE: EVIDENCE_MEANING}

    def __init__(self, in_dim: int, n_pseudo_bags: int = 5, hidden_dim: int = 512, attention_dim: int = 128) -> None:
        super().__init__()
        self.config = {
            "in_dim": in_dim,
            "n_pseudo_bags": n_pseudo_bags,
            "hidden_dim": hidden_dim,
            "attention_dim": attention_dim,
        }
        self.n_pseudo_bags = n_pseudo_bags
        self.embed = nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.ReLU())
        self.attention = nn.ModuleList(GatedAttention(hidden_dim, attention_dim) for _ in range(2))
        self.classifier = nn.ModuleList(nn.Linear(hidden_dim, 2) for _ in range(2))

    @classmethod
    def untrained(cls, bags: Sequence[TrainingBag], settings: FitConfig, options: Config, seed: int) -> Self:
        """See `LearnedAggregator`."""
        return cls(bags[0].dim)

    def loss(self, instances: Tensor, label: Tensor, generator: torch.Generator) -> Tensor:
        """See the class."""
        order = torch.randperm(len(instances), generator=generator)
        hidden = self.embed(instances)
        pseudo_bags = [hidden[part] for part in order.chunk(min(self.n_pseudo_bags, len(order)))]
        distilled = torch.cat([self._pool(0, part) for part in pseudo_bags])
        tier_1 = F.cross_entropy(self.classifier[0](distilled), label.expand(len(distilled)))
        return tier_1 + F.cross_entropy(self.classifier[1](self._pool(1, distilled)), label.view(1))

    def read(self, kind: InstanceScore) -> DTFDReading:
        """See `Aggregator.read`. An instance's score is the odds of its class probability (the paper's eq. 6 and 7).

        The signal for a class is a product of three factors. These are the weights of the class, the instance's hidden
        vector, and its attention relative to the mean over its pseudo-bag.
        """
        return DTFDReading(self)

    def tier_1_direction(self) -> Tensor:
        """Tier 1's weights of the positive class minus those of the negative class, (hidden_dim,)."""
        classifier = self.classifier[0]
        assert isinstance(classifier, nn.Linear)
        return classifier.weight[1] - classifier.weight[0]

    def probability(self, distilled: Tensor) -> float:
        """Pseudo-bags' pooled features (M, hidden_dim) → the bag's probability."""
        return float(self.classifier[1](self._pool(1, distilled)).softmax(dim=1)[0, 1])

    def _pool(self, tier: int, hidden: Tensor) -> Tensor:
        return self.attention[tier](hidden).softmax(dim=0).T @ hidden


class DTFDReading:
    """Updates a running softmax per pseudo-bag, as `AttentionReading` does for the whole bag."""

    def __init__(self, model: DTFDMIL) -> None:
        self._model = model
        m, hidden_dim = model.n_pseudo_bags, model.config["hidden_dim"]
        self._max, self._weight = torch.full((m,), -torch.inf), torch.zeros(m)
        self._pooled, self._count = torch.zeros(m, hidden_dim), torch.zeros(m)
        self._attention, self._signal, self._of = Gathered(), Gathered(), Gathered()

    def add(self, instances: Tensor) -> None:
        """See `Reading`."""
        hidden = self._model.embed(instances)
        raw, of = self._model.attention[0](hidden).squeeze(1), pseudo_bag_of(instances, len(self._count))
        new_max = self._max.scatter_reduce(0, of, raw, "amax")
        # An empty pseudo-bag needs no correction, and infinity minus infinity would be NaN.
        kept = torch.where(self._max.isinf(), 0.0, (self._max - new_max).exp())
        weights = (raw - new_max[of]).exp()
        self._pooled = (kept.unsqueeze(1) * self._pooled).index_add(0, of, weights.unsqueeze(1) * hidden)
        self._weight = (kept * self._weight).index_add(0, of, weights)
        self._count = self._count + torch.bincount(of, minlength=len(self._count))
        self._max = new_max
        weight = self._model.tier_1_direction()
        self._attention.add(raw)
        self._signal.add(hidden @ weight)
        self._of.add(of)

    def result(self) -> tuple[float, Tensor]:
        """See `Reading`."""
        filled = self._count > 0
        probability = self._model.probability(self._pooled[filled] / self._weight[filled].unsqueeze(1))
        raw, signal, of = self._attention.all(), self._signal.all(), self._of.all()
        relative = (raw - self._max[of]).exp() / self._weight[of] * self._count[of]
        return probability, odds(relative * signal)


def pseudo_bag_of(instances: Tensor, n_pseudo_bags: int) -> Tensor:
    """The pseudo-bag of each instance, a hash of its bytes that spreads evenly: float32 (N, D) → int64 (N,)."""
    # Sums of integers do not depend on their order, so neither blocks nor threads change the result.
    total = instances.contiguous().view(torch.int32).sum(dim=1, dtype=torch.int64)
    return ((total * 0x9E3779B1) >> 15) % n_pseudo_bags
