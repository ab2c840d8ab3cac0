"""ItS2CLR (arXiv 2210.09452): supervised contrastive learning on pseudo labels of instances, renewed every epoch.

The pseudo labels come from slide labels alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cytomil.encoders.architecture import Encoder
from cytomil.errors import BagFileError
from cytomil.training.cells import TrainingCells
from cytomil.training.config import PretrainConfig
from cytomil.training.losses import supcon_loss
from cytomil.training.methods.base import Batch, balanced_batches
from cytomil.training.methods.contrastive import SimCLR
from cytomil.training.training_encoder import embed_cells

_SHRINKAGE = 0.1


def cross_fitted_scores(embeddings: Tensor, is_positive: Tensor, patient: Tensor, n_folds: int = 5) -> Tensor:
    """Score the cells of positive slides by a linear discriminant of slide labels that was fitted without their patient.

    In each fold the direction is (Σ + λI)⁻¹ (μ₊ − μ₋). μ₊ is the mean of the cells of positive slides in other folds, and
    μ₋ that of all negative slides. Σ is the mean of both covariances, and λ a tenth of its mean eigenvalue. A patient's
    cells do not affect the direction that scores them. Peculiarities of a slide therefore do not raise all its scores.

    Args:
        embeddings: shape (N, D).
        is_positive: the slide's label of each cell, shape (N,).
        patient: a number for each cell's patient, shape (N,).
        n_folds: max number of folds over the positive patients.

    Returns:
        Scores, shape (N,), higher for cells less similar to those of negative slides. Cells of negative slides are
        normal and have NaN.

    Raises:
        BagFileError: the positive slides come from fewer than two patients.
    """
    x = embeddings.double()
    patients = patient[is_positive].unique()
    if len(patients) < 2:
        raise BagFileError(
            "its2clr needs positive bags of at least two patients, because it scores each patient by the others. "
            "Add bags or choose another method."
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


def top_fraction(scores: Tensor, bag: Tensor, fraction: float) -> Tensor:
    """Indices of the cells with the highest scores in each bag, ``fraction`` of its cells but at least one.

    Args:
        scores: shape (N,); cells with NaN are left out.
        bag: a number for each cell's bag, shape (N,).
        fraction: in (0, 1].
    """
    chosen = []
    for number in bag[~scores.isnan()].unique():
        members = torch.nonzero((bag == number) & ~scores.isnan()).flatten()
        n = max(1, round(fraction * len(members)))
        chosen.append(members[scores[members].argsort(descending=True, stable=True)[:n]])
    return torch.cat(chosen).sort().values


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean(dim=0)
    centred = x - mean
    return mean, centred.T @ centred / len(x)


FIRST_FRACTION, LAST_FRACTION = 0.4, 0.1
_NEGATIVE, _POSITIVE, _UNUSED = 0, 1, -1


class ItS2CLR(SimCLR):
    """SimCLR for the first half of the epochs, then supervised rounds of one epoch each.

    Before a round, a discriminant of slide labels, fitted without the cell's patient, scores every cell of a positive
    slide. The cells with the highest scores in each positive bag get the pseudo label positive for this round. Their
    fraction falls from 40 % to 10 %. SupCon contrasts them with the cells of negative slides, and the other cells of
    positive bags are left out.
    """

    classes = True

    def __init__(self, settings: PretrainConfig, encoder: Encoder, cells: TrainingCells) -> None:
        super().__init__(settings, encoder, cells)
        self.first_round = settings.epochs // 2
        self.pseudo_labels: Tensor
        self.register_buffer("pseudo_labels", torch.full((len(cells),), _UNUSED, dtype=torch.int8))

    def before_epoch(self, epoch: int, encoder: Encoder) -> None:
        """Choose the pseudo labels of this round."""
        if epoch < self.first_round:
            return
        cells = self.cells
        h, _ = embed_cells(encoder, cells.pixels)
        scores = cross_fitted_scores(h, cells.is_positive, cells.patient)
        labels = torch.where(cells.is_positive, _UNUSED, _NEGATIVE).to(torch.int8)
        labels[top_fraction(scores, cells.bag, self.fraction_at(epoch))] = _POSITIVE
        self.pseudo_labels.copy_(labels)

    def fraction_at(self, epoch: int) -> float:
        """The fraction of each positive bag that gets a positive pseudo label in this epoch. It falls exponentially."""
        n_rounds = self.settings.epochs - self.first_round
        done = (epoch - self.first_round) / max(1, n_rounds - 1)
        return FIRST_FRACTION * (LAST_FRACTION / FIRST_FRACTION) ** done

    def batches(self, generator: torch.Generator) -> list[Tensor]:
        """Half of each step's cells come from each side or, in supervised rounds, have each pseudo label."""
        if not self._in_rounds():
            return super().batches(generator)
        labels = self.pseudo_labels.cpu()
        pools = [torch.nonzero(labels == label).flatten() for label in (_NEGATIVE, _POSITIVE)]
        longest = max(map(len, self.sides()))
        return balanced_batches(pools, self.settings.batch_size, generator, longest)

    def losses(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """NT-Xent of all cells or, in supervised rounds, SupCon with the pseudo labels as classes."""
        if not self._in_rounds():
            return super().losses(encoder, batch)
        _, z = encoder(torch.cat(batch.views))
        labels = self.pseudo_labels.cpu()[batch.indices].to(z.device)
        return {"supcon": supcon_loss(z, labels.repeat(2), self.settings.temperature)}

    def _in_rounds(self) -> bool:
        return bool((self.pseudo_labels != _UNUSED).any())
