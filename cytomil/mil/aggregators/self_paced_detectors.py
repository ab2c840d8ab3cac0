"""The detectors that self-paced combines, and the mixture of Gaussians that two of them use.

`Discriminant` and `WitnessMixture` compare suspects with the cells of negative bags. They learn in rounds (`Paced`).
`NormalDensity` needs no suspects. `MatchedContrast` compares suspects with equally suspicious cells of negative bags.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from cytomil.mil.aggregators.scorers import subsample

SHRINKAGE = 0.1
MATCHED_FRACTIONS = (0.03, 0.06, 0.1)
_TOWARDS_COMMON = 0.3
_MAX_KINDS = 4
_MAX_CELLS = 6_000
_ROUNDS = 30
_CELLS_PER_KIND = 20
_RIDGE = 1e-3
_CONVERGED = 1e-3
_READER_C = 0.01
_EPS = 1e-9

Background = TypeVar("Background")


class Paced(nn.Module, ABC, Generic[Background]):
    """A detector that contrasts suspects with the cells of negative bags.

    ``Background`` is the type of what it learns from the negatives alone.
    """

    @classmethod
    @abstractmethod
    def fit_background(cls, negatives: Tensor, seed: int) -> Background:
        """Fit the background to the cells of negative bags, (N ≥ 1, K) float64."""

    @classmethod
    @abstractmethod
    def fit_contrast(cls, background: Background, suspects: Tensor) -> Paced[Background]:
        """Fit the detector to a background and to suspects, (M ≥ 1, K) float64."""

    @abstractmethod
    def forward(self, cells: Tensor) -> Tensor:
        """Cells (N, K) → how suspicious each is, float64 (N,)."""


class Direction(nn.Module):
    """A linear score: ``weight`` (K,), and ``middle`` (K,), where it is 0. Both are float64 buffers, initially 0."""

    weight: Tensor
    middle: Tensor

    def __init__(self, n_components: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(n_components, dtype=torch.float64))
        self.register_buffer("middle", torch.zeros(n_components, dtype=torch.float64))

    def forward(self, cells: Tensor) -> Tensor:
        """Cells (N, K) → how far each lies along the direction, float64 (N,)."""
        score: Tensor = (cells - self.middle) @ self.weight
        return score


@dataclass(frozen=True)
class Gaussian:
    """``mean`` (K,) of some cells and ``precision`` (K, K), the inverse of their shrunk covariance."""

    mean: Tensor
    precision: Tensor


class Discriminant(Direction, Paced[Gaussian]):
    """Fisher's linear discriminant: w = Σ⁻¹(suspects' mean - negatives' mean), Σ the negatives' covariance shrunk by 0.1.

    It depends only on means, while logistic regression adapts to single cells. Suspects are few, and some of them are not
    witnesses. The discriminant therefore orders cells better here. docs/log/research-log.md has the figures.
    """

    @classmethod
    def fit_background(cls, negatives: Tensor, seed: int) -> Gaussian:
        """See `Paced`."""
        return Gaussian(negatives.mean(dim=0), torch.linalg.inv(shrunk(torch.cov(negatives.T, correction=0))))

    @classmethod
    def fit_contrast(cls, background: Gaussian, suspects: Tensor) -> Discriminant:
        """See `Paced`."""
        model = cls(suspects.shape[1])
        mean = suspects.mean(dim=0)
        model.weight.copy_(background.precision @ (mean - background.mean))
        model.middle.copy_((mean + background.mean) / 2)
        return model


@dataclass(frozen=True)
class WhitenedKinds:
    """The kinds of negatives' cells, whitened: ``whitening`` (K, K), ``means`` (J, K), mixing ``weights`` (J,)."""

    whitening: Tensor
    means: Tensor
    weights: Tensor


class WitnessMixture(Paced[WhitenedKinds]):
    """The log ratio of two densities with one covariance: the suspects' Gaussian to the mixture of negatives' kinds.

    There are several kinds of normal cells, but a single linear boundary treats them as one. The idea comes from PAMIL's
    prototypes, but here they are fitted as a generative model.
    """

    whitening: Tensor
    normal: Tensor
    normal_log_share: Tensor
    witness: Tensor

    def __init__(self, n_components: int, n_normal: int) -> None:
        super().__init__()
        shapes = {
            "whitening": (n_components, n_components),
            "normal": (n_normal, n_components),
            "normal_log_share": (n_normal,),
            "witness": (1, n_components),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    @classmethod
    def fit_background(cls, negatives: Tensor, seed: int) -> WhitenedKinds:
        """See `Paced`. The covariance is shrunk as in `Discriminant`."""
        kinds, _ = find_kinds(negatives, seed)
        whitening = torch.linalg.cholesky(torch.linalg.inv(shrunk(kinds.covariance)))
        return WhitenedKinds(whitening, kinds.means @ whitening, kinds.weights)

    @classmethod
    def fit_contrast(cls, background: WhitenedKinds, suspects: Tensor) -> WitnessMixture:
        """See `Paced`."""
        model = cls(suspects.shape[1], len(background.means))
        model.whitening.copy_(background.whitening)
        model.normal.copy_(background.means)
        model.normal_log_share.copy_(background.weights.clamp(min=_EPS).log())
        model.witness.copy_(suspects.mean(dim=0, keepdim=True) @ background.whitening)
        return model

    def forward(self, cells: Tensor) -> Tensor:
        """See `Paced`."""
        white = cells @ self.whitening
        normal = (self.normal_log_share - squared_to_each(white, self.normal) / 2).logsumexp(dim=1)
        return -squared_to_each(white, self.witness).squeeze(1) / 2 - normal


class NormalDensity(nn.Module):
    """Minus the log density, up to a constant, of a mixture with one Gaussian per kind of negatives' cells.

    A kind's covariance is shrunk by 0.3 towards the common one, because a rare kind has few cells. It is then shrunk by 0.1
    towards a sphere (regularised discriminant analysis: Friedman, JASA 1989).
    """

    centres: Tensor
    whitenings: Tensor
    log_shares: Tensor

    def __init__(self, n_components: int, n_kinds: int) -> None:
        super().__init__()
        self.register_buffer("centres", torch.zeros((n_kinds, n_components), dtype=torch.float64))
        self.register_buffer("whitenings", torch.zeros((n_kinds, n_components, n_components), dtype=torch.float64))
        self.register_buffer("log_shares", torch.zeros(n_kinds, dtype=torch.float64))

    @classmethod
    def learn(cls, negatives: Tensor, seed: int) -> Self:
        """Learn from negative bags' cells, (N ≥ 1, K) float64."""
        kinds, cells = find_kinds(negatives, seed)
        responsibilities = kinds.responsibilities(cells)
        model = cls(negatives.shape[1], len(kinds.means))
        model.centres.copy_(kinds.means)
        for i, (mean, weight) in enumerate(zip(kinds.means, kinds.weights, strict=True)):
            of_kind, centred = responsibilities[:, i], cells - mean
            own = (centred * of_kind[:, None]).T @ centred / of_kind.sum().clamp(min=1)
            whitening = torch.linalg.cholesky(
                torch.linalg.inv(shrunk((1 - _TOWARDS_COMMON) * own + _TOWARDS_COMMON * kinds.covariance))
            )
            model.whitenings[i] = whitening
            model.log_shares[i] = weight.log() + whitening.diagonal().log().sum()
        return model

    def forward(self, cells: Tensor) -> Tensor:
        """Cells (N, K) → float64 (N,), higher for less likely cells."""
        squared = torch.stack(
            [
                ((cells - centre) @ whitening).square().sum(dim=1)
                for centre, whitening in zip(self.centres, self.whitenings, strict=True)
            ],
            dim=1,
        )
        return -(self.log_shares - squared / 2).logsumexp(dim=1)


class MatchedContrast(Direction):
    """A ridge discriminant of suspects against equally suspicious cells of negative bags.

    Most suspects are odd normal cells, so their mean depends more on oddness than on witnesses. Negative bags have odd
    cells too. Above a common threshold of suspicion, cells of both sides are equally odd. The difference of their means is
    then due to witnesses alone, scaled by their fraction. For thresholds t at the negatives' top 3, 6 and 10 %:

        w_t = (Σ + diag(penalty))⁻¹ (mean of suspects above t - mean of negatives above t),

    where Σ is the covariance of all negatives. The directions are averaged, each in units of its spread over the negatives.
    A cell on the other side of the negatives' mean scores 0, because it is not less abnormal. The suspicion scores must
    come from detectors that did not learn from the bag. Otherwise positives score high because they were memorised.
    """

    @classmethod
    def learn(
        cls, negatives: Sequence[Tensor], positives: Sequence[Tensor], suspicion: Sequence[Tensor], penalty: Tensor
    ) -> Self:
        """Learn from cells and their suspicion scores.

        Args:
            negatives: each negative bag's cells, float64 (n, K).
            positives: each positive bag's cells, float64 (n, K).
            suspicion: scores of all negatives' and of all positives' cells, (N,) and (M,).
            penalty: per component, (K,), in units of its variance.
        """
        normal, positive = torch.cat(list(negatives)), torch.cat(list(positives))
        normal_scores, positive_scores = suspicion
        model = cls(normal.shape[1])
        model.middle.copy_(normal.mean(dim=0))
        covariance = torch.cov(normal.T, correction=0).reshape(len(penalty), len(penalty))
        factor = torch.linalg.cholesky(covariance + penalty.diag())
        for fraction in MATCHED_FRACTIONS:
            threshold = normal_scores.quantile(1 - fraction)
            suspects, matched = positive[positive_scores >= threshold], normal[normal_scores >= threshold]
            if len(suspects):
                difference = suspects.mean(dim=0) - matched.mean(dim=0)
                direction = torch.cholesky_solve(difference[:, None], factor)[:, 0]
                spread = ((normal - model.middle) @ direction).std(correction=0)
                model.weight += direction / spread.clamp(min=_EPS) / len(MATCHED_FRACTIONS)
        return model

    def forward(self, cells: Tensor) -> Tensor:
        """Cells (N, K) → how suspicious each is, float64 (N,), at least 0."""
        return super().forward(cells).clamp(min=0)


class ReaderContrast(Direction):
    """Logistic regression of the cells that readers confirmed against all cells known to be normal."""

    @classmethod
    def learn(cls, normal: Tensor, confirmed: Tensor) -> Self:
        """Learn from cells known to be normal, (N, K), and from confirmed ones, (M ≥ 1, K), both float64."""
        from sklearn.linear_model import LogisticRegression

        cells = torch.cat([normal, confirmed]).numpy()
        is_abnormal = torch.arange(len(cells)).numpy() >= len(normal)
        fitted = LogisticRegression(C=_READER_C, class_weight="balanced", max_iter=500).fit(cells, is_abnormal)
        model = cls(normal.shape[1])
        model.weight.copy_(torch.from_numpy(fitted.coef_[0]))
        model.middle.copy_(normal.mean(dim=0))
        return model


@dataclass(frozen=True)
class TiedMixture:
    """A mixture of J Gaussians with one covariance, in float64.

    Args:
        means: (J, K).
        weights: mixing weights, (J,).
        covariance: (K, K).
    """

    means: Tensor
    weights: Tensor
    covariance: Tensor

    @classmethod
    def fit(cls, cells: Tensor, max_kinds: int, max_rounds: int, seed: int) -> Self:
        """Fit to ``cells``, (N ≥ 2, K) float64, by expectation maximisation, with 20 cells or more per Gaussian.

        It starts from k-means and stops when the mean log likelihood changes by less than 0.001. scikit-learn's
        `GaussianMixture(covariance_type="tied")` does the same. With one covariance, the quadratic term of a cell is the
        same for all Gaussians. A round thus costs J products of N by K; scikit-learn needs J of N by K by K.
        """
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        n_kinds = max(1, min(max_kinds, len(cells) // _CELLS_PER_KIND))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # raised if all cells are equal
            labels = KMeans(n_kinds, n_init=1, random_state=seed).fit(cells.numpy()).labels_
        second_moment = cells.T @ cells / len(cells)
        responsibilities = torch.nn.functional.one_hot(torch.from_numpy(labels).long(), n_kinds).double()
        mixture, before = cls._maximise(cells, responsibilities, second_moment), -math.inf
        for _ in range(max_rounds):
            responsibilities, likelihood = mixture._expect(cells, second_moment)
            mixture = cls._maximise(cells, responsibilities, second_moment)
            if abs(likelihood - before) < _CONVERGED:
                break
            before = likelihood
        return mixture

    def responsibilities(self, cells: Tensor) -> Tensor:
        """Cells (N, K) → the probability that each belongs to each Gaussian, (N, J)."""
        return self._log_ratios(cells, torch.cholesky_inverse(torch.linalg.cholesky(self.covariance))).softmax(dim=1)

    @classmethod
    def _maximise(cls, cells: Tensor, responsibilities: Tensor, second_moment: Tensor) -> Self:
        counts = responsibilities.sum(dim=0) + 10 * torch.finfo(responsibilities.dtype).eps
        means = responsibilities.T @ cells / counts[:, None]
        weights = counts / counts.sum()
        covariance = second_moment - (weights[:, None] * means).T @ means
        covariance.diagonal().add_(_RIDGE)
        return cls(means, weights, covariance)

    def _expect(self, cells: Tensor, second_moment: Tensor) -> tuple[Tensor, float]:
        """The `responsibilities`, and the cells' mean log likelihood."""
        factor = torch.linalg.cholesky(self.covariance)
        precision = torch.cholesky_inverse(factor)
        ratios = self._log_ratios(cells, precision)
        normaliser = ratios.logsumexp(dim=1, keepdim=True)
        log_determinant = 2 * factor.diagonal().log().sum()
        quadratic = (precision * second_moment).sum()
        constant = (len(factor) * math.log(2 * math.pi) + log_determinant + quadratic) / 2
        return (ratios - normaliser).exp(), float(normaliser.mean() - constant)

    def _log_ratios(self, cells: Tensor, precision: Tensor) -> Tensor:
        """The log of weight times density, (N, J), up to a term per cell that all Gaussians share."""
        slopes = precision @ self.means.T
        return cells @ slopes - (self.means.T * slopes).sum(dim=0) / 2 + self.weights.log()


def find_kinds(cells: Tensor, seed: int) -> tuple[TiedMixture, Tensor]:
    """Fit a mixture of up to four kinds to ``cells``, (N ≥ 1, K) float64.

    Returns the mixture and the cells that it was fitted to, up to 6,000 drawn ones.
    """
    kept = subsample(cells, _MAX_CELLS, seed)
    if len(kept) == 1:  # a mixture needs two
        kept = kept.repeat(2, 1)
    return TiedMixture.fit(kept, _MAX_KINDS, _ROUNDS, seed), kept


def squared_to_each(cells: Tensor, centres: Tensor) -> Tensor:
    """Squared distances of cells (N, K) from centres (J, K): (N, J)."""
    return torch.cdist(cells, centres, compute_mode="donot_use_mm_for_euclid_dist").square()


def shrunk(covariance: Tensor) -> Tensor:
    """A covariance (K, K), shrunk by `SHRINKAGE` towards the sphere of the same total variance."""
    covariance = covariance.reshape(covariance.shape[-1] if covariance.dim() else 1, -1)
    variance = covariance.diagonal().mean().clamp(min=1e-9)
    sphere = torch.eye(len(covariance), dtype=covariance.dtype) * variance
    return (1 - SHRINKAGE) * covariance + SHRINKAGE * sphere
