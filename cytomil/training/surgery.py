"""Gradient surgery: what to do when two tasks pull the shared weights in opposing directions."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import partial

import torch
from torch import Tensor

from cytomil.errors import SettingsError


class Surgery(StrEnum):
    """How the gradients of two tasks become one update."""

    SUM = "sum"
    PCGRAD = "pcgrad"
    ADAPTIVE = "adaptive"
    PRIORITY = "priority"
    CAGRAD = "cagrad"
    MGDA = "mgda"
    IMTL_G = "imtl-g"


class Rescale(StrEnum):
    """When gradient surgery restores the norm of the plain sum."""

    PAPER = "paper"
    ALWAYS = "always"
    NEVER = "never"


CAGRAD_C = 0.5

Weighting = Callable[[Tensor], Tensor]
"""From the gradients' inner products, shape (T, T), in double precision, to what each counts in the update, shape (T,)."""

_BLOCK = 512
# Below this share of its parts' squared norms, an update's own is mostly what single precision's rounding left.
_CANCELLED = 1e-8


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
    return combine(gradients, pcgrad_weights(inner_products(gradients)))


def adaptive_gradient_surgery(gradients: Tensor, rescale: str = "paper") -> Tensor:
    """PCGrad, then the plain sum's norm restored (SLAM-AGS, arXiv 2511.14639, eq. 6).

    Of conflicting gradients, projection shrinks the sum where their norms differ much and lengthens it where they are
    alike. ``rescale`` says when its norm is set to that of the plain sum: ``paper`` only where it shrank (eq. 6),
    ``always`` (the authors' code), or ``never`` (plain PCGrad). Gradients that cancel each other out, but for rounding,
    are not rescaled.

    Args:
        gradients: one flat gradient a task, shape (T, P).
        rescale: ``paper``, ``always`` or ``never``.

    Returns:
        The update direction, shape (P,).

    Raises:
        ValueError: for another number of dimensions, no task, or another ``rescale``.
    """
    return combine(gradients, adaptive_weights(inner_products(gradients), rescale))


def inner_products(gradients: Tensor) -> Tensor:
    """Inner product of every pair of gradients, shape (T, P) → (T, T), in double precision.

    Summed block by block: as one product of rows with millions of columns, single precision is off by up to 3e-3 of them.

    Raises:
        ValueError: for another number of dimensions, or no task.
    """
    if gradients.ndim != 2 or len(gradients) == 0:
        raise ValueError(f"gradients must have shape (T ≥ 1, P), got {tuple(gradients.shape)}")
    n_blocks = gradients.shape[1] // _BLOCK
    blocks = gradients[:, : n_blocks * _BLOCK].view(len(gradients), n_blocks, _BLOCK).transpose(0, 1)
    tail = gradients[:, n_blocks * _BLOCK :]
    return torch.bmm(blocks, blocks.mT).double().sum(dim=0) + tail.double() @ tail.double().T


def combine(gradients: Tensor, weights: Tensor, out: Tensor | None = None) -> Tensor:
    """The update Σ w_i g_i of gradients (T, P) and weights (T,), shape (P,); ``out`` may be the first gradient itself."""
    # Not weights @ gradients: a matrix product of one row was slower inside a step.
    first, *others = weights.to(gradients.dtype)
    update = torch.mul(gradients[0], first, out=out)
    for gradient, weight in zip(gradients[1:], others, strict=True):
        update.addcmul_(gradient, weight)
    return update


def pcgrad_weights(products: Tensor) -> Tensor:
    """What each gradient counts in `pcgrad`'s update, shape (T,), from their inner products (T, T).

    What is removed from a gradient stays in the gradients' span, so that nothing else need be known of them.
    """
    shares = torch.eye(len(products), dtype=products.dtype, device=products.device)
    for j in range(len(products)):
        inner = (shares @ products[j]).clamp(max=0) / products[j, j].clamp(min=torch.finfo(products.dtype).tiny)
        inner[j] = 0
        shares[:, j] -= inner
    return shares.sum(dim=0)


def priority_weights(products: Tensor) -> Tensor:
    """What each gradient counts, shape (T,), from their inner products (T, T), where the last task comes first.

    Every other gradient loses its component along the last one's where it opposes it (A-GEM, arXiv 1812.00420, eq. 11),
    and the last one stays whole. PCGrad projects both ways whatever the gradients' norms: the least of tasks may forbid
    the greatest a direction. Here, to first order, the last task learns no slower than by itself.
    """
    weights = torch.ones_like(products[0])
    opposed = products[:-1, -1].clamp(max=0).sum()
    weights[-1] -= opposed / products[-1, -1].clamp(min=torch.finfo(products.dtype).tiny)
    return weights


def adaptive_weights(products: Tensor, rescale: str = "paper") -> Tensor:
    """What each gradient counts in `adaptive_gradient_surgery`'s update, shape (T,), from their inner products (T, T).

    Raises:
        ValueError: for another ``rescale``.
    """
    if rescale not in ("paper", "always", "never"):
        raise ValueError(f"rescale must be 'paper', 'always' or 'never', got {rescale!r}")
    weights = pcgrad_weights(products)
    if rescale == "never":
        return weights
    squared, wanted = weights @ products @ weights, products.sum()
    cancelled = squared <= _CANCELLED * (weights.square() @ products.diagonal())
    unchanged = cancelled | (squared >= wanted) if rescale == "paper" else cancelled
    return weights * torch.where(unchanged, 1.0, wanted / squared).clamp(min=0).sqrt()


def surgeon(surgery: Surgery, rescale: Rescale) -> Weighting | None:
    """What weighs the tasks' gradients in an update, from their inner products; None for their plain sum.

    ``pcgrad``, ``adaptive`` and ``priority`` are this module's. The others are torchjd's: ``cagrad`` (arXiv 2110.14048,
    c = `CAGRAD_C`) keeps within c times the mean gradient's norm of it and takes the step there that serves the
    worst-off task best; ``mgda`` (Désidéri 2012; arXiv 1810.04650) is the convex combination of least norm; ``imtl-g``
    (Liu et al., ICLR 2021) has the same projection on every task's gradient. These three are averages where the others
    are sums, so that their steps are shorter at the same learning rate.

    Raises:
        SettingsError: torchjd, or for ``cagrad`` its solver, is not installed.
    """
    ours = {
        Surgery.SUM: None,
        Surgery.PCGRAD: pcgrad_weights,
        Surgery.ADAPTIVE: partial(adaptive_weights, rescale=rescale.value),
        Surgery.PRIORITY: priority_weights,
    }
    if surgery in ours:
        return ours[surgery]
    try:
        from torchjd.aggregation import CAGradWeighting, IMTLGWeighting, MGDAWeighting

        if surgery is Surgery.MGDA:
            return partial(_by_torchjd, MGDAWeighting())
        if surgery is Surgery.IMTL_G:
            return partial(_by_torchjd, IMTLGWeighting())
        # torchjd's own threshold, 1e-4, takes small gradients for a solution and stops training silently.
        return partial(_by_torchjd, CAGradWeighting(c=CAGRAD_C, norm_eps=1e-12))
    except ImportError:
        raise SettingsError(
            f"--surgery {surgery.value} needs a library that is not installed. Install it with pip install 'cytomil[surgery]'."
        ) from None


def _by_torchjd(weighting: Weighting, products: Tensor) -> Tensor:
    if not bool(torch.isfinite(products).all()):
        # The solvers raise on NaN; the loop tells of divergence in words.
        return torch.ones_like(products[0])
    return weighting(products)
