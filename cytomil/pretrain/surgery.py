"""Gradient surgery: what to do when two tasks pull the shared weights in opposing directions."""

from __future__ import annotations

import torch
from torch import Tensor


def pcgrad(gradients: Tensor) -> Tensor:
    """Project each task's gradient off those it conflicts with, then sum (PCGrad, arXiv 2001.06782, algorithm 1).

    Each gradient g_i is taken in turn against the *original* g_j of the other tasks, j ascending (the paper draws the
    order at random; with two tasks there is only one): where their inner product is negative, g_i's component along
    g_j is removed.

    Args:
        gradients: one flat gradient a task, shape (T, P).

    Returns:
        The sum of the projected gradients, shape (P,).

    Raises:
        ValueError: for another number of dimensions, or no task.
    """
    _check(gradients)
    # What is removed stays in the gradients' span, so their inner products say all that must be known of them: the long
    # gradients are read twice in all, and no step waits for the device.
    products = gradients @ gradients.T
    shares = torch.eye(len(gradients), dtype=gradients.dtype, device=gradients.device)
    for j in range(len(gradients)):
        inner = (shares @ products[j]).clamp(max=0) / products[j, j].clamp(min=torch.finfo(gradients.dtype).tiny)
        inner[j] = 0
        shares[:, j] -= inner
    return shares.sum(dim=0) @ gradients


def adaptive_gradient_surgery(gradients: Tensor, rescale: str = "paper") -> Tensor:
    """PCGrad, then the plain sum's norm restored (SLAM-AGS, arXiv 2511.14639, eq. 6).

    Of conflicting gradients, projection shrinks the sum where their norms differ much and lengthens it where they are
    alike. ``rescale`` says when its norm is set to that of the plain sum: ``paper`` only where it shrank (eq. 6),
    ``always`` (the authors' code), or ``never`` (plain PCGrad). Gradients that cancel each other out stay zero.

    Args:
        gradients: one flat gradient a task, shape (T, P).
        rescale: ``paper``, ``always`` or ``never``.

    Returns:
        The update direction, shape (P,).

    Raises:
        ValueError: for another number of dimensions, no task, or another ``rescale``.
    """
    if rescale not in ("paper", "always", "never"):
        raise ValueError(f"rescale must be 'paper', 'always' or 'never', got {rescale!r}")
    _check(gradients)
    projected = pcgrad(gradients)
    if rescale == "never":
        return projected
    norm, wanted = torch.linalg.vector_norm(projected), torch.linalg.vector_norm(gradients.sum(dim=0))
    unchanged = (norm == 0) | (norm >= wanted) if rescale == "paper" else norm == 0
    return projected * torch.where(unchanged, 1.0, wanted / norm)


def _check(gradients: Tensor) -> None:
    if gradients.ndim != 2 or len(gradients) == 0:
        raise ValueError(f"gradients must have shape (T ≥ 1, P), got {tuple(gradients.shape)}")
