"""Losses of SLAM-AGS (arXiv 2511.14639) and of the methods that it is compared with."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def similarity_loss(z: Tensor, temperature: float = 0.07) -> Tensor:
    """Mean over ordered pairs i ≠ j of −cos(z_i, z_j) / τ (SLAM-AGS eq. 1; WeakSupCon's loss on negatives).

    As printed, eq. 1 divides the pair sum by the number of negatives. This function takes the mean over pairs, like the
    authors' code. The two differ by the factor |Neg| − 1, and only the mean is independent of the batch size. The
    minimum, −1/τ, is reached if all projections are one point.

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
    # |Σ u|² is the sum over all ordered pairs, including i = j.
    pair_sum = unit.sum(dim=0).square().sum() - unit.square().sum()
    return -pair_sum / (len(z) * (len(z) - 1)) / temperature


def nt_xent_loss(z_i: Tensor, z_j: Tensor, temperature: float = 0.07) -> Tensor:
    """Normalised temperature-scaled cross entropy (SLAM-AGS eq. 2; SimCLR, arXiv 2002.05709, eq. 1).

    Each of the 2N projections is classified among the 2N − 1 others. The target is the other view of the same
    instance. Chance is ln(2N − 1), see `chance_level`.

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

    The mean over anchors i of −1/|P(i)| Σ_{p ∈ P(i)} ln softmax_{a ≠ i}(cos(z_i, z_a) / τ)_p, where P(i) are the other
    projections of the anchor's class. Chance is ln(M − 1). With two views per cell and one class per cell, the loss is
    NT-Xent.

    Args:
        z: projections, shape (M, D), all views of all cells; they need not be normalised.
        labels: class of each row, shape (M,).
        temperature: τ > 0.

    Returns:
        A scalar, the mean over the anchors that have a positive, in nats; 0 if none has.

    Raises:
        ValueError: for inconsistent shapes, fewer than two rows, or τ ≤ 0.
    """
    if z.ndim != 2 or len(z) < 2 or labels.shape != (len(z),):
        raise ValueError(
            f"supcon_loss needs z of shape (M ≥ 2, D) and M labels, got {tuple(z.shape)}, {tuple(labels.shape)}"
        )
    _check_temperature(temperature)
    unit = F.normalize(z, dim=1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    log_probability = (unit @ unit.T / temperature).masked_fill(itself, float("-inf")).log_softmax(dim=1)
    is_partner = (labels[:, None] == labels[None, :]) & ~itself
    n_partners = is_partner.sum(dim=1)
    # Not multiplied by the mask: −∞ · 0 on the diagonal would be NaN.
    by_anchor = -log_probability.masked_fill(~is_partner, 0.0).sum(dim=1) / n_partners.clamp(min=1)
    return by_anchor.sum() / (n_partners > 0).sum().clamp(min=1)


def info_nce_loss(queries: Tensor, keys: Tensor, temperature: float = 0.07) -> Tensor:
    """InfoNCE of one view's queries against the other view's keys (MoCo v3, arXiv 2104.02057, eq. 1).

    Each of the N queries is classified among all N keys. The target is the key of the same instance. Chance is ln N.

    Args:
        queries: shape (N, D); they need not be normalised.
        keys: shape (N, D), row by row of the same instances; detach them to stop their gradient.
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
    """NT-Xent of an encoder that distinguishes nothing, for ``n`` instances in two views: ln(2n − 1) nats."""
    return math.log(2 * n - 1)


def _check_pairs(loss: str, ours: Tensor, others: Tensor) -> None:
    if ours.shape != others.shape or ours.ndim != 2 or len(ours) == 0:
        raise ValueError(
            f"{loss} needs two tensors of the same shape (N, D), got {tuple(ours.shape)}, {tuple(others.shape)}"
        )


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
