"""Gradient surgery: what to do when two tasks pull the shared weights in opposing directions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from cytomil.errors import SettingsError
from cytomil.settings import Rescale, Surgery

CAGRAD_C = 0.5


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
    products = inner_products(gradients)
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
    return projected.mul_(torch.where(unchanged, 1.0, wanted / norm))


def inner_products(gradients: Tensor) -> Tensor:
    """Inner product of every pair of gradients, shape (T, P) → (T, T).

    Row by row: a matrix product of two rows with millions of columns is several times slower.
    """
    return torch.stack([torch.mv(gradients, gradient) for gradient in gradients])


def surgeon(surgery: Surgery, rescale: Rescale) -> Callable[[Tensor], Tensor] | None:
    """What turns the tasks' gradients, shape (T, P), into one update (P,); None for their plain sum.

    ``pcgrad`` and ``adaptive`` are this module's. The others are torchjd's, taken on the Gramian of the gradients in
    double precision: ``cagrad`` (arXiv 2110.14048, c = `CAGRAD_C`) keeps within c times the mean gradient's norm of it
    and takes the step there that serves the worst-off task best; ``mgda`` (Désidéri 2012; arXiv 1810.04650) is the convex
    combination of least norm; ``imtl-g`` (Liu et al., ICLR 2021) has the same projection on every task's gradient. These
    three are averages where the others are sums, so that their steps are shorter at the same learning rate.

    Raises:
        SettingsError: ``cagrad`` without the solver it needs.
    """
    if surgery is Surgery.SUM:
        return None
    if surgery is Surgery.PCGRAD:
        return pcgrad
    if surgery is Surgery.ADAPTIVE:
        return partial(adaptive_gradient_surgery, rescale=rescale.value)
    from torchjd.aggregation import CAGradWeighting, IMTLGWeighting, MGDAWeighting

    if surgery is Surgery.MGDA:
        return partial(_weighted, MGDAWeighting())
    if surgery is Surgery.IMTL_G:
        return partial(_weighted, IMTLGWeighting())
    try:
        # Its own threshold, 1e-4, would take small gradients for a solution and stop the training without a word.
        return partial(_weighted, CAGradWeighting(c=CAGRAD_C, norm_eps=1e-12))
    except ImportError:
        raise SettingsError(
            "--surgery cagrad needs a solver that is not installed. Install it with pip install 'cytomil[surgery]'."
        ) from None


def _weighted(weighting: Callable[[Tensor], Tensor], gradients: Tensor) -> Tensor:
    _check(gradients)
    gramian = inner_products(gradients).double()
    if not bool(torch.isfinite(gramian).all()):
        # The solvers raise on NaN; the loop tells of divergence in words.
        return gradients.sum(dim=0)
    return weighting(gramian).to(gradients.dtype) @ gradients


def _check(gradients: Tensor) -> None:
    if gradients.ndim != 2 or len(gradients) == 0:
        raise ValueError(f"gradients must have shape (T ≥ 1, P), got {tuple(gradients.shape)}")
