"""What tells suspects from the cells of negative bags: a shrunk linear discriminant."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cytomil.mil.aggregators.direction import Direction
from cytomil.mil.aggregators.pacing import Paced

SHRINKAGE = 0.1


@dataclass(frozen=True)
class Cloud:
    """``mean`` (K,) and the shrunk covariance's inverse ``precision`` (K, K) of some cells."""

    mean: Tensor
    precision: Tensor


class Discriminant(Direction, Paced[Cloud]):
    """Fisher's linear discriminant: w = Σ⁻¹(suspects' mean - negatives' mean), Σ the negatives' covariance shrunk by 0.1.

    It rests on two means, where logistic regression bends to single cells. Suspects are few and some of them are wrong, so
    that it orders cells better here; docs/log/research-log.md has the figures.
    """

    @classmethod
    def study(cls, negatives: Tensor, seed: int) -> Cloud:
        """See `Paced`."""
        return Cloud(negatives.mean(dim=0), torch.linalg.inv(shrunk(torch.cov(negatives.T, correction=0))))

    @classmethod
    def against(cls, known: Cloud, suspects: Tensor) -> Discriminant:
        """See `Paced`."""
        model = cls(suspects.shape[1])
        mean = suspects.mean(dim=0)
        model.weight.copy_(known.precision @ (mean - known.mean))
        model.middle.copy_((mean + known.mean) / 2)
        return model


def shrunk(covariance: Tensor) -> Tensor:
    """A covariance (K, K), drawn by `SHRINKAGE` towards the sphere of the same total variance."""
    covariance = covariance.reshape(covariance.shape[-1] if covariance.dim() else 1, -1)
    variance = covariance.diagonal().mean().clamp(min=1e-9)
    sphere = torch.eye(len(covariance), dtype=covariance.dtype) * variance
    return (1 - SHRINKAGE) * covariance + SHRINKAGE * sphere
