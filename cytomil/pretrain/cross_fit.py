"""Which cells of positive slides are least like negative slides' cells, as slide labels alone can tell."""

from __future__ import annotations

import torch
from torch import Tensor

from cytomil.errors import BagFileError

_SHRINKAGE = 0.1


def cross_fitted_scores(embeddings: Tensor, is_positive: Tensor, patient: Tensor, n_folds: int = 5) -> Tensor:
    """Score the cells of positive slides by a linear discriminant of slide labels that was fitted without their patient.

    In each fold the direction is (Σ + λI)⁻¹ (μ₊ − μ₋): means of the cells of positive slides of other folds and of all
    negative slides, Σ the mean of both covariances, λ a tenth of its mean eigenvalue. Since a patient's own cells have no
    part in the direction that scores them, a slide's peculiarities do not make all of its cells look abnormal.

    Args:
        embeddings: shape (N, D).
        is_positive: the slide's label of each cell, shape (N,).
        patient: a number for each cell's patient, shape (N,).
        n_folds: into how many parts positive patients are dealt, at most.

    Returns:
        Scores, shape (N,), higher for cells less like a negative slide's; NaN for cells of negative slides, which are
        normal and need none.

    Raises:
        BagFileError: the positive slides are of fewer than two patients.
    """
    x = embeddings.double()
    patients = patient[is_positive].unique()
    if len(patients) < 2:
        raise BagFileError(
            "its2clr scores each patient by the others: it needs positive bags of at least two patients."
        )
    negative = _moments(x[~is_positive])
    scores = torch.full((len(x),), float("nan"), dtype=torch.float64)
    for held_out in patients.tensor_split(min(n_folds, len(patients))):
        is_held_out = is_positive & torch.isin(patient, held_out)
        positive = _moments(x[is_positive & ~is_held_out])
        covariance = (negative[1] + positive[1]) / 2
        ridge = _SHRINKAGE * covariance.diagonal().mean().clamp(min=1e-12)
        covariance.diagonal().add_(ridge)
        direction = torch.linalg.solve(covariance, positive[0] - negative[0])
        scores[is_held_out] = x[is_held_out] @ direction
    return scores


def top_share(scores: Tensor, bag: Tensor, share: float) -> Tensor:
    """Indices of the cells of highest score in each bag that has scores, ``share`` of its cells, at least one.

    Args:
        scores: shape (N,); NaN leaves a cell out.
        bag: a number for each cell's bag, shape (N,).
        share: above 0 to 1.
    """
    chosen = []
    for number in bag[~scores.isnan()].unique():
        members = torch.nonzero((bag == number) & ~scores.isnan()).flatten()
        n = max(1, round(share * len(members)))
        chosen.append(members[scores[members].argsort(descending=True, stable=True)[:n]])
    return torch.cat(chosen).sort().values


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean(dim=0)
    centred = x - mean
    return mean, centred.T @ centred / len(x)
