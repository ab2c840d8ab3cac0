"""ItS2CLR (arXiv 2210.09452): supervised contrast on instance pseudo labels that slide labels alone give, round by round."""

from __future__ import annotations

import torch
from torch import Tensor

from cytomil.encoders.architecture import Encoder
from cytomil.errors import BagFileError
from cytomil.training.batches import deal_pools
from cytomil.training.cells import TrainingCells
from cytomil.training.config import PretrainConfig
from cytomil.training.losses import supcon_loss
from cytomil.training.methods.base import Batch
from cytomil.training.methods.simclr import SimCLR
from cytomil.training.training_encoder import embed_cells

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


FIRST_SHARE, LAST_SHARE = 0.4, 0.1
_NEGATIVE, _POSITIVE, _UNUSED = 0, 1, -1


class ItS2CLR(SimCLR):
    """SimCLR for the first half of the epochs, then a round an epoch.

    Before a round every cell of a positive slide is scored by a discriminant of slide labels fitted without its patient.
    The highest-scored share of each positive bag, shrinking from 40 % to 10 %, is called positive for that round and
    contrasted with the cells of negative slides (SupCon); the rest of the positive bags is left out.
    """

    classes = True

    def __init__(self, settings: PretrainConfig, encoder: Encoder, cells: TrainingCells) -> None:
        super().__init__(settings, encoder, cells)
        self.first_round = settings.epochs // 2
        self.pseudo_labels: Tensor
        self.register_buffer("pseudo_labels", torch.full((len(cells),), _UNUSED, dtype=torch.int8))

    def before_epoch(self, epoch: int, encoder: Encoder) -> None:
        """Give pseudo labels for this round."""
        if epoch < self.first_round:
            return
        cells = self.cells
        h, _ = embed_cells(encoder, cells.pixels)
        scores = cross_fitted_scores(h, cells.is_positive, cells.patient)
        labels = torch.where(cells.is_positive, _UNUSED, _NEGATIVE).to(torch.int8)
        labels[top_share(scores, cells.bag, self.share_at(epoch))] = _POSITIVE
        self.pseudo_labels.copy_(labels)

    def share_at(self, epoch: int) -> float:
        """The share of each positive bag that is called positive in this epoch's round; falls by a constant factor."""
        n_rounds = self.settings.epochs - self.first_round
        done = (epoch - self.first_round) / max(1, n_rounds - 1)
        return FIRST_SHARE * (LAST_SHARE / FIRST_SHARE) ** done

    def batches(self, generator: torch.Generator) -> list[Tensor]:
        """Half of each step's cells from either side; in rounds, from those with either pseudo label."""
        if not self._in_rounds():
            return super().batches(generator)
        labels = self.pseudo_labels.cpu()
        pools = [torch.nonzero(labels == label).flatten() for label in (_NEGATIVE, _POSITIVE)]
        longest = max(map(len, self.sides()))
        return deal_pools(pools, self.settings.batch_size, generator, longest)

    def losses(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """NT-Xent of all cells; in rounds, SupCon with the pseudo labels as classes."""
        if not self._in_rounds():
            return super().losses(encoder, batch)
        _, z = encoder(torch.cat(batch.views))
        labels = self.pseudo_labels.cpu()[batch.indices].to(z.device)
        return {"supcon": supcon_loss(z, labels.repeat(2), self.settings.temperature)}

    def _in_rounds(self) -> bool:
        return bool((self.pseudo_labels != _UNUSED).any())
