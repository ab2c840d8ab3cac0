"""The reference for `bench.fit_mil`: a plain loop like published code, written from the papers.

Fits run one after another, for every fold and seed. In every epoch, every bag is read from its HDF5 file and passed through
a plain PAMIL with autograd and PyTorch's Adam. Then the held-out bags are read and assessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class FeatureFile:
    path: Path
    label: int

    def read(self) -> Tensor:
        with h5py.File(self.path, "r") as file:
            return torch.from_numpy(file["features"][:]).float()


class PlainPAMIL(nn.Module):
    """Instances (N, D) → class logits (2,), attention (2, N), affinities (N, K): the PAMIL equations of SLAM-AGS."""

    def __init__(self, in_dim: int, n_prototypes: int = 10, hidden: int = 512, attention: int = 256) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(n_prototypes, in_dim))
        self.fc = nn.Linear(in_dim, hidden)
        self.v = nn.Linear(hidden, attention)
        self.u = nn.Linear(hidden, attention)
        self.w = nn.Linear(n_prototypes, 2)
        self.classifiers = nn.ModuleList([nn.Linear(hidden, 1), nn.Linear(hidden, 1)])

    def forward(self, instances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = F.normalize(torch.relu(self.fc(instances)), dim=1)
        p = F.normalize(torch.relu(self.fc(self.prototypes)), dim=1)
        affinity = torch.mm(torch.sigmoid(self.u(h)), torch.tanh(self.v(p)).transpose(0, 1))
        attention = torch.softmax(self.w(affinity).transpose(0, 1), dim=1)
        pooled = F.normalize(torch.mm(attention, h), dim=1)
        logits = torch.cat([classify(pooled[c]) for c, classify in enumerate(self.classifiers)])
        return logits, attention, affinity


def fit(
    train: Sequence[FeatureFile], held_out: Sequence[FeatureFile], epochs: int, seed: int, mean: Tensor, std: Tensor
) -> tuple[PlainPAMIL, list[list[float]]]:
    """Train one model. Returns it and the probability of each held-out bag after every epoch."""
    torch.manual_seed(seed)
    model = PlainPAMIL(len(mean))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    by_epoch = []
    for _ in range(epochs):
        model.train()
        for i in torch.randperm(len(train)).tolist():
            instances, label = (train[i].read() - mean) / std, torch.tensor([train[i].label])
            optimizer.zero_grad()
            logits, _, affinity = model(instances)
            assignment = torch.softmax(affinity, dim=1)
            clusters = (1 - assignment.max(dim=1)[0].mean()) + (1 - assignment.max(dim=0)[0].mean())
            loss = F.cross_entropy(logits.unsqueeze(0), label) + 0.005 * clusters
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            by_epoch.append([_probability(model, (bag.read() - mean) / std) for bag in held_out])
    return model, by_epoch


def cross_validate(bags: Sequence[FeatureFile], fold_of: Sequence[int], seeds: int, epochs: int) -> int:
    """Fit every fold and seed, one after another. Returns the number of fits."""
    fits = 0
    for held in range(max(fold_of) + 1):
        kept = [bag for bag, fold in zip(bags, fold_of, strict=True) if fold != held]
        held_out = [bag for bag, fold in zip(bags, fold_of, strict=True) if fold == held]
        values = torch.cat([bag.read() for bag in kept])
        mean, std = values.mean(dim=0), values.std(dim=0)
        for seed in range(seeds):
            fit(kept, held_out, epochs, seed, mean, std)
            fits += 1
    return fits


def _probability(model: PlainPAMIL, instances: Tensor) -> float:
    return float(torch.softmax(model(instances)[0], dim=0)[1])
