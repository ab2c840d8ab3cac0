"""DTFD-MIL: double-tier feature distillation (Zhang et al., CVPR 2022, arXiv 2203.12081)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cytomil.config import Config
from cytomil.mil.aggregators.base import EVIDENCE_MEANING, Gathered, odds
from cytomil.mil.aggregators.gated_attention import GatedAttention
from cytomil.mil.aggregators.learned import LearnedAggregator
from cytomil.mil.bags import TrainingBag
from cytomil.mil.config import FitConfig, InstanceScore


class DTFDMIL(LearnedAggregator):
    """Splits a bag into pseudo-bags. One attention model pools each of them (tier 1), another pools the results (tier 2).

    Of the paper's four distillations, this is AFS, aggregated feature selection: a pseudo-bag is represented by the feature
    that its attention pools. The loss is the cross entropy of tier 2 plus the mean cross entropy of the pseudo-bags in tier 1.

    In training, the split is random in every step, as in the paper. In use, an instance's own bytes decide its pseudo-bag,
    so the result depends neither on the order nor on chance.

    Args:
        in_dim: length of an instance's embedding.
        n_pseudo_bags: the paper uses 5 on CAMELYON16; fewer if the bag has fewer instances.
        hidden_dim: length of the shared layer's output.
        attention_dim: length of the gates.
    """

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

        Its signal for a class is the product of the class's weights, the instance's hidden vector, and its attention
        relative to the mean over its pseudo-bag.
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
        # An empty pseudo-bag has nothing to correct, and infinity minus infinity is NaN.
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
    """The pseudo-bag of each instance, decided by its bytes and evenly spread: float32 (N, D) → int64 (N,)."""
    # Sums of integers do not depend on their order, so neither blocks nor threads change the result.
    total = instances.contiguous().view(torch.int32).sum(dim=1, dtype=torch.int64)
    return ((total * 0x9E3779B1) >> 15) % n_pseudo_bags
