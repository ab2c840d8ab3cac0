"""Train one aggregator on bags of embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cytomil.mil.pamil import PAMIL
from cytomil.mil.prototypes import kmeans_prototypes
from cytomil.settings import FitMilSettings, Prototypes


@dataclass(frozen=True)
class TrainingBag:
    """One bag's embeddings, float32 (N, D), its label and its patient (the bag's own id where unknown)."""

    bag_id: str
    values: Tensor
    label: int
    patient: str


@dataclass(frozen=True)
class Standardiser:
    """Brings embeddings to zero mean and unit variance a dimension, by the training bags' own. Both shape (D,)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, bags: Sequence[TrainingBag]) -> Standardiser:
        """Measured over all instances of ``bags``."""
        values = torch.cat([bag.values for bag in bags])
        return cls(values.mean(dim=0), values.std(dim=0, correction=0).clamp(min=1e-6))

    def __call__(self, values: Tensor) -> Tensor:
        """Embeddings (N, D) → standardised embeddings (N, D)."""
        return (values - self.mean) / self.std


@contextmanager
def one_thread() -> Iterator[None]:
    """Run PyTorch on one thread: a bag of some hundred cells is too little work to share between cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def training_epochs(
    bags: Sequence[TrainingBag], settings: FitMilSettings, epochs: int, seed: int
) -> Iterator[tuple[PAMIL, Standardiser]]:
    """Train on ``bags`` one at a time in random order; yields the aggregator after every epoch."""
    standardise = Standardiser.of(bags)
    inputs = [(standardise(bag.values), torch.tensor(bag.label)) for bag in bags]
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = PAMIL(inputs[0][0].shape[1], settings.n_prototypes)
    if settings.prototypes is Prototypes.KMEANS:
        start = kmeans_prototypes([np.asarray(values) for values, _ in inputs], settings.n_prototypes, seed)
        model.prototypes.data.copy_(torch.from_numpy(start))
    optimizer = torch.optim.Adam(
        model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    for _ in range(epochs):
        model.train()
        for i in torch.randperm(len(inputs), generator=generator).tolist():
            optimizer.zero_grad(set_to_none=True)
            values, label = inputs[i]
            model.training_loss(values, label, settings.cluster_weight).backward()
            optimizer.step()
        yield model.eval(), standardise


@torch.inference_mode()
def positive_probability(model: PAMIL, values: Tensor) -> float:
    """The probability of the positive class for one bag, (N, D), already standardised."""
    logits, _ = model(values)
    return float(logits.softmax(dim=0)[1])
