"""The losses: SLAM-AGS's (arXiv 2511.14639) and those of the methods it is compared with."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def similarity_loss(z: Tensor, temperature: float = 0.07) -> Tensor:
    """Pull all projections of negative slides' cells together (SLAM-AGS eq. 1; WeakSupCon's loss on negatives).

    The mean over ordered pairs i ≠ j of −cos(z_i, z_j) / τ. As printed, eq. 1 divides the pair sum by the number of
    negatives; the authors' code takes the mean over pairs, and so does this function: it differs by the factor
    |Neg| − 1 and keeps the loss's scale free of the batch size. Its least value, −1/τ, is a single point.

    Args:
        z: projections of negatives, shape (N, D), N ≥ 2; they need not be normalised.
        temperature: τ > 0.

    Returns:
        A scalar.

    Raises:
        ValueError: for another shape, fewer than two rows, or τ ≤ 0.
    """
    if z.ndim != 2 or len(z) < 2:
        raise ValueError(f"similarity_loss needs projections of shape (N ≥ 2, D), got {tuple(z.shape)}")
    _check_temperature(temperature)
    unit = F.normalize(z, dim=1)
    # |Σ u|² is the sum over all ordered pairs with i = j among them.
    pair_sum = unit.sum(dim=0).square().sum() - unit.square().sum()
    return -pair_sum / (len(z) * (len(z) - 1)) / temperature


def nt_xent_loss(z_i: Tensor, z_j: Tensor, temperature: float = 0.07) -> Tensor:
    """Normalised temperature-scaled cross entropy (SLAM-AGS eq. 2; SimCLR, arXiv 2002.05709, eq. 1).

    Each of the 2N projections must pick its partner, the other view of the same instance, among the 2N − 1 others.
    Chance is ln(2N − 1), see `chance_level`.

    Args:
        z_i: projections of the first views, shape (N, D); they need not be normalised.
        z_j: projections of the second views, shape (N, D), row by row of the same instances.
        temperature: τ > 0.

    Returns:
        A scalar, the mean over all 2N projections, in nats.

    Raises:
        ValueError: for shapes that differ or are not (N ≥ 1, D), or τ ≤ 0.
    """
    _check_pairs("nt_xent_loss", z_i, z_j)
    _check_temperature(temperature)
    n = len(z_i)
    unit = F.normalize(torch.cat([z_i, z_j]), dim=1)
    logits = unit @ unit.T / temperature
    logits = logits.masked_fill(torch.eye(2 * n, dtype=torch.bool, device=z_i.device), float("-inf"))
    partner = torch.arange(2 * n, device=z_i.device).roll(n)
    return F.cross_entropy(logits, partner)


def supcon_loss(z: Tensor, labels: Tensor, temperature: float = 0.07) -> Tensor:
    """Supervised contrastive loss L_out (Khosla et al., arXiv 2004.11362, eq. 2).

    Each projection must pick those of its own class among all others: the mean over anchors of −1/|P(i)| times the sum
    over its positives p of ln softmax_{a ≠ i}(cos(z_i, z_a) / τ) at p. Where nothing is told apart it is ln(M − 1). With
    two views a cell and every cell a class of its own it is NT-Xent.

    Args:
        z: projections, shape (M, D), all views of all cells; they need not be normalised.
        labels: class of each row, shape (M,).
        temperature: τ > 0.

    Returns:
        A scalar, the mean over the anchors that have a positive, in nats; 0 where none has.

    Raises:
        ValueError: for shapes that do not fit, fewer than two rows, or τ ≤ 0.
    """
    if z.ndim != 2 or len(z) < 2 or labels.shape != (len(z),):
        raise ValueError(
            f"supcon_loss needs z of shape (M ≥ 2, D) and M labels, got {tuple(z.shape)}, {tuple(labels.shape)}"
        )
    _check_temperature(temperature)
    unit = F.normalize(z, dim=1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    log_share = (unit @ unit.T / temperature).masked_fill(itself, float("-inf")).log_softmax(dim=1)
    is_partner = (labels[:, None] == labels[None, :]) & ~itself
    n_partners = is_partner.sum(dim=1)
    # Not multiplied by the mask: −∞ · 0 on the diagonal would be NaN.
    of_anchors = -log_share.masked_fill(~is_partner, 0.0).sum(dim=1) / n_partners.clamp(min=1)
    return of_anchors.sum() / (n_partners > 0).sum().clamp(min=1)


def info_nce_loss(queries: Tensor, keys: Tensor, temperature: float = 0.07) -> Tensor:
    """InfoNCE of one view's queries among the other view's keys (MoCo v3, arXiv 2104.02057, eq. 1).

    Each of the N queries must pick its own key among all N. Chance is ln N.

    Args:
        queries: shape (N, D); they need not be normalised.
        keys: shape (N, D), row by row of the same instances; no gradient flows into them if they carry none.
        temperature: τ > 0.

    Returns:
        A scalar, the mean over queries, in nats.

    Raises:
        ValueError: for shapes that differ or are not (N ≥ 1, D), or τ ≤ 0.
    """
    _check_pairs("info_nce_loss", queries, keys)
    _check_temperature(temperature)
    logits = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(queries), device=queries.device))


def chance_level(n: int) -> float:
    """NT-Xent of an encoder that tells nothing apart, for ``n`` instances in two views: ln(2n − 1) nats."""
    return math.log(2 * n - 1)


def _check_pairs(loss: str, ours: Tensor, others: Tensor) -> None:
    if ours.shape != others.shape or ours.ndim != 2 or len(ours) == 0:
        raise ValueError(
            f"{loss} needs two tensors of one shape (N, D), got {tuple(ours.shape)}, {tuple(others.shape)}"
        )


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
