"""One-class scorers, which model the cells of negative bags, and a ratio of distances to the nearest cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cytomil.config import Config
from cytomil.mil.aggregators.base import DEFAULTS
from cytomil.mil.aggregators.scorers import OneClassScorer, TwoSidedScorer, subsample
from cytomil.mil.aggregators.self_paced_detectors import TiedMixture, squared_to_each
from cytomil.mil.bags import TrainingBag
from cytomil.mil.config import FitConfig, InstanceScore

_SVM_CELLS = 2_000
_SVM_NU = 0.1
_SVM_BLOCK = 2048
_COMPONENTS = 8
_MIXTURE_ROUNDS = 100
_MIXTURE_CELLS = 20_000


class Mahalanobis(OneClassScorer):
    """√((x-μ)ᵀ Σ⁻¹ (x-μ)), μ and Σ the mean and the shrunk covariance (Ledoit and Wolf, 2004) of negative bags' cells."""

    meaning: ClassVar = {
        InstanceScore.EVIDENCE: "× the distance of a normal training slide's average cell from their centre"
    }

    mean: Tensor
    precision: Tensor

    def __init__(self, in_dim: int, share: float) -> None:
        super().__init__(in_dim, share)
        self.register_buffer("mean", torch.zeros(in_dim, dtype=torch.float64))
        self.register_buffer("precision", torch.eye(in_dim, dtype=torch.float64))

    @classmethod
    def learn(cls, cells: Tensor, settings: FitConfig = DEFAULTS, options: Config | None = None, seed: int = 0) -> Self:
        """See `OneClassScorer`."""
        model = cls(cells.shape[1], settings.top_fraction)
        mean, precision = mean_and_precision(cells.double().numpy())
        model.mean.copy_(mean)
        model.precision.copy_(precision)
        return model

    def distances(self, instances: Tensor) -> Tensor:
        """See `PooledScorer`."""
        return squared_distances(instances, self.mean, self.precision).sqrt().float()


class GaussianDensity(OneClassScorer):
    """The log ratio of two densities of a mixture of Gaussians: at its most likely centre, and at the cell.

    There are up to eight Gaussians, because normal slides hold several kinds of cells. They share one covariance, because
    a rare kind has too few cells to estimate a separate one. The mixture is fitted to up to 20,000 drawn cells.
    """

    meaning: ClassVar = {InstanceScore.EVIDENCE: "× as unusual (log density) as a normal training slide's average cell"}

    centres: Tensor
    whitening: Tensor
    log_weights: Tensor
    peak: Tensor

    def __init__(self, in_dim: int, share: float, n_components: int) -> None:
        super().__init__(in_dim, share, n_components=n_components)
        self.register_buffer("centres", torch.zeros(n_components, in_dim, dtype=torch.float64))
        self.register_buffer("whitening", torch.eye(in_dim, dtype=torch.float64))
        self.register_buffer("log_weights", torch.full((n_components,), -math.log(n_components), dtype=torch.float64))
        self.register_buffer("peak", torch.zeros((), dtype=torch.float64))

    @classmethod
    def learn(cls, cells: Tensor, settings: FitConfig = DEFAULTS, options: Config | None = None, seed: int = 0) -> Self:
        """See `OneClassScorer`."""
        fitted = TiedMixture.fit(subsample(cells, _MIXTURE_CELLS, seed).double(), _COMPONENTS, _MIXTURE_ROUNDS, seed)
        model = cls(cells.shape[1], settings.top_fraction, len(fitted.means))
        model.centres.copy_(fitted.means)
        model.whitening.copy_(torch.linalg.cholesky(torch.linalg.inv(fitted.covariance)))
        model.log_weights.copy_(fitted.weights.log())
        model.peak.copy_(model.log_density(model.centres).max())
        return model

    def log_density(self, instances: Tensor) -> Tensor:
        """Log density up to a constant that all cells share: (N, D) → float64 (N,)."""
        white, centres = instances.double() @ self.whitening, self.centres @ self.whitening
        return (self.log_weights - squared_to_each(white, centres) / 2).logsumexp(dim=1)

    def distances(self, instances: Tensor) -> Tensor:
        """See `PooledScorer`."""
        return (self.peak - self.log_density(instances)).clamp(min=0).float()


class OneClassSVM(OneClassScorer):
    """The log ratio of two kernel sums Σ αᵢ exp(-γ‖x-xᵢ‖²): the maximum over the training cells, and the sum at the cell.

    Source: the support vector machine of Schölkopf et al., 2001, with a Gaussian kernel, by scikit-learn. Its decision
    function is this sum minus a constant, so both give the same order of cells. Far from the training cells, the sum
    underflows to 0, but its logarithm still distinguishes distances. At most 2,000 cells are drawn, because time grows with
    the square of their number.
    """

    meaning: ClassVar = {
        InstanceScore.EVIDENCE: "× as far outside the normal cells as a normal training slide's average cell"
    }

    vectors: Tensor
    log_weights: Tensor
    greatest: Tensor

    def __init__(self, in_dim: int, share: float, n_vectors: int, gamma: float) -> None:
        super().__init__(in_dim, share, n_vectors=n_vectors, gamma=gamma)
        self.gamma = gamma
        self.register_buffer("vectors", torch.zeros(n_vectors, in_dim))
        self.register_buffer("log_weights", torch.zeros(n_vectors))
        self.register_buffer("greatest", torch.zeros(()))

    @classmethod
    def learn(cls, cells: Tensor, settings: FitConfig = DEFAULTS, options: Config | None = None, seed: int = 0) -> Self:
        """See `OneClassScorer`."""
        from sklearn import svm

        kept = subsample(cells, _SVM_CELLS, seed)
        gamma = 1 / (kept.shape[1] * max(float(kept.var(correction=0)), 1e-6))
        fitted = svm.OneClassSVM(nu=_SVM_NU, gamma=gamma).fit(kept.numpy())
        model = cls(cells.shape[1], settings.top_fraction, len(fitted.support_), gamma)
        model.vectors.copy_(kept[torch.from_numpy(fitted.support_).long()])
        model.log_weights.copy_(torch.from_numpy(fitted.dual_coef_[0]).clamp(min=1e-30).log())
        model.greatest.copy_(model.log_kernel_sum(kept).max())
        return model

    def log_kernel_sum(self, instances: Tensor) -> Tensor:
        """Instances (N, D) → log Σ αᵢ exp(-γ‖x-xᵢ‖²), (N,)."""
        return torch.cat(
            [
                (self.log_weights - self.gamma * torch.cdist(block, self.vectors).square()).logsumexp(dim=1)
                for block in instances.split(_SVM_BLOCK)
            ]
        )

    def distances(self, instances: Tensor) -> Tensor:
        """See `PooledScorer`."""
        return (self.greatest - self.log_kernel_sum(instances)).clamp(min=0)


def mean_and_precision(cells: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and inverse of the covariance, shrunk towards a sphere (Ledoit and Wolf, 2004), of cells (N ≥ 2, D).

    Returns float64 (D,) and (D, D). If all cells are equal, the covariance is 0, and so is its pseudo-inverse.
    """
    from sklearn.covariance import LedoitWolf

    fitted = LedoitWolf(store_precision=False).fit(cells)
    covariance = torch.from_numpy(fitted.covariance_)
    # scikit-learn inverts by eigenvalues, thirty times slower at the 2,093 dimensions of layer morphology.
    factor, failed = torch.linalg.cholesky_ex(covariance)
    precision = torch.linalg.pinv(covariance, hermitian=True) if failed else torch.cholesky_inverse(factor).contiguous()
    return torch.from_numpy(fitted.location_), precision


def squared_distances(cells: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    """Squared Mahalanobis distances of cells (N, D) from a mean (D,), given the precision (D, D): float64 (N,)."""
    centred = cells.double() - mean
    return ((centred @ precision) * centred).sum(dim=1).clamp(min=0)


_NEIGHBOURS = 5
_NEIGHBOURS_OF_RATIO = 10
_MAX_CELLS = 10_000
_BLOCK = 2048
_MIN_DISTANCE = 1e-6
_SAME_WITHIN = 3e-3  # relative to a cell's length; the precision of distances by matrix products


class NearestNeighbours(OneClassScorer):
    """The mean Euclidean distance to the ``neighbours`` nearest cells of negative bags, of up to 10,000 drawn ones."""

    meaning: ClassVar = {
        InstanceScore.EVIDENCE: "× as far from its nearest normal cells as a normal training slide's average cell"
    }

    cells: Tensor

    def __init__(self, in_dim: int, share: float, n_cells: int, neighbours: int) -> None:
        super().__init__(in_dim, share, n_cells=n_cells, neighbours=neighbours)
        self.neighbours = neighbours
        self.register_buffer("cells", torch.zeros(n_cells, in_dim))

    @classmethod
    def learn(cls, cells: Tensor, settings: FitConfig = DEFAULTS, options: Config | None = None, seed: int = 0) -> Self:
        """See `OneClassScorer`."""
        kept = subsample(cells, _MAX_CELLS, seed)
        model = cls(cells.shape[1], settings.top_fraction, len(kept), min(_NEIGHBOURS, len(kept)))
        model.cells.copy_(kept)
        return model

    def distances(self, instances: Tensor) -> Tensor:
        """See `PooledScorer`."""
        return nearest_distances(instances, self.cells, self.neighbours).mean(dim=1)


class DensityRatio(TwoSidedScorer):
    """The distance to the tenth nearest cell of negative bags, divided by that to the tenth nearest of positive bags.

    It estimates the ratio of the two densities (see `distance_ratio`). If normal cells are alike in both kinds of bag, the
    ratio orders cells by their probability of being a witness. An odd cell is far from both sides, so oddness alone does
    not make it suspicious. Embeddings are compared by direction.
    """

    meaning: ClassVar = {
        InstanceScore.EVIDENCE: "× as much closer to diseased than to normal training slides' cells as their average cell"
    }

    negatives: Tensor
    positives: Tensor

    def __init__(self, in_dim: int, share: float, n_negatives: int, n_positives: int) -> None:
        super().__init__(in_dim, share, n_negatives=n_negatives, n_positives=n_positives)
        self.register_buffer("negatives", torch.zeros(n_negatives, in_dim))
        self.register_buffer("positives", torch.zeros(n_positives, in_dim))

    @classmethod
    def learn_from(
        cls,
        bags: Sequence[TrainingBag],
        settings: FitConfig = DEFAULTS,
        options: Config | None = None,
        seed: int = 0,
    ) -> Self:
        """See `TwoSidedScorer`; up to 10,000 drawn cells of each label are kept."""
        sides = [torch.cat([bag.values for bag in bags if bag.label == label]) for label in (0, 1)]
        negatives, positives = (subsample(side, _MAX_CELLS, seed) for side in sides)
        model = cls(negatives.shape[1], settings.top_fraction, len(negatives), len(positives))
        model.negatives.copy_(F.normalize(negatives, dim=1))
        model.positives.copy_(F.normalize(positives, dim=1))
        return model

    def distances(self, instances: Tensor) -> Tensor:
        """See `PooledScorer`. The distance is the ratio; it is 1 if a cell is equally close to both sides."""
        return distance_ratio(F.normalize(instances, dim=1), self.negatives, self.positives)


def nearest_distances(instances: Tensor, cells: Tensor, k: int) -> Tensor:
    """Exact Euclidean distances to the ``k`` nearest of ``cells`` (M > k, D), nearest first: (N, D) → (N, k).

    An instance that is one of the cells does not count as its neighbour. Otherwise training cells would be closer to
    the others than new cells are, and normal distances would be too short. If M = k, such an instance has one fewer neighbour.
    """
    return torch.cat([_of_block(block, cells, k) for block in instances.split(_BLOCK)])


def distance_ratio(instances: Tensor, negatives: Tensor, positives: Tensor) -> Tensor:
    """The distance to the tenth nearest of ``negatives``, divided by that to the tenth nearest of ``positives``.

    Its power D estimates the ratio of the positives' density to the negatives' (k-nearest-neighbour density
    estimates; Loftsgaarden and Quesenberry, 1965). With fewer than ten cells, the farthest is taken. (N, D) → (N,).
    """
    to_negative, to_positive = (
        nearest_distances(instances, side, min(_NEIGHBOURS_OF_RATIO, len(side)))[:, -1].clamp(min=_MIN_DISTANCE)
        for side in (negatives, positives)
    )
    return to_negative / to_positive


def _of_block(block: Tensor, cells: Tensor, k: int) -> Tensor:
    nearest = torch.cdist(block, cells).topk(min(k + 1, len(cells)), largest=False).values
    is_itself = nearest[:, :1] < _SAME_WITHIN * block.norm(dim=1, keepdim=True).clamp(min=1)
    return torch.where(is_itself, nearest[:, -k:], nearest[:, :k])
