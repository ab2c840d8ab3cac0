"""Gradient surgery: combine the gradients of tasks that may conflict on the shared weights."""

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
"""Maps the gradients' gramian, shape (T, T), double precision, to their weights in the update, shape (T,)."""

_BLOCK = 512
# An update whose squared norm is below this fraction of its parts' squared norms is mostly rounding error.
_CANCELLED = 1e-8


def pcgrad(gradients: Tensor) -> Tensor:
    """Remove conflicting components from each task's gradient, then sum (PCGrad, arXiv 2001.06782, algorithm 1).

    Each gradient g_i is compared with the *original* g_j of every other task, in ascending order of j. If their inner
    product is negative, the component of g_i along g_j is removed. The paper draws the order at random. With two tasks
    there is only one order.

    Args:
        gradients: one flat gradient per task, shape (T, P).

    Returns:
        The sum of the projected gradients, shape (P,).

    Raises:
        ValueError: the gradients are not of shape (T ≥ 1, P).
    """
    return combine(gradients, pcgrad_weights(compute_gramian(gradients)))


def adaptive_gradient_surgery(gradients: Tensor, rescale: str = "paper") -> Tensor:
    """PCGrad, then restore the norm of the plain sum (SLAM-AGS, arXiv 2511.14639, eq. 6).

    If gradients conflict, the projection shortens the sum when their norms differ much, and lengthens it when they are
    similar. Gradients that cancel except for rounding are not rescaled.

    Args:
        gradients: one flat gradient per task, shape (T, P).
        rescale: when to set the norm to that of the plain sum: ``paper`` only if the sum became shorter (eq. 6),
            ``always`` (the authors' code), or ``never`` (plain PCGrad).

    Returns:
        The update direction, shape (P,).

    Raises:
        ValueError: the gradients are not of shape (T ≥ 1, P), or ``rescale`` is unknown.
    """
    return combine(gradients, adaptive_weights(compute_gramian(gradients), rescale))


def compute_gramian(gradients: Tensor) -> Tensor:
    """Inner product of every pair of gradients, shape (T, P) → (T, T), in double precision.

    Blocks are summed in double precision. One single-precision product of rows with millions of columns has a relative
    error of up to 3e-3.

    Raises:
        ValueError: the gradients are not of shape (T ≥ 1, P).
    """
    if gradients.ndim != 2 or len(gradients) == 0:
        raise ValueError(f"gradients must have shape (T ≥ 1, P), got {tuple(gradients.shape)}")
    n_blocks = gradients.shape[1] // _BLOCK
    blocks = gradients[:, : n_blocks * _BLOCK].view(len(gradients), n_blocks, _BLOCK).transpose(0, 1)
    tail = gradients[:, n_blocks * _BLOCK :]
    return torch.bmm(blocks, blocks.mT).double().sum(dim=0) + tail.double() @ tail.double().T


def combine(gradients: Tensor, weights: Tensor, out: Tensor | None = None) -> Tensor:
    """The update Σ w_i g_i of gradients (T, P) and weights (T,), shape (P,). ``out`` may be the first gradient."""
    # Not weights @ gradients: a matrix product with one row was slower within a step.
    first, *others = weights.to(gradients.dtype)
    update = torch.mul(gradients[0], first, out=out)
    for gradient, weight in zip(gradients[1:], others, strict=True):
        update.addcmul_(gradient, weight)
    return update


def pcgrad_weights(gramian: Tensor) -> Tensor:
    """The weight of each gradient in `pcgrad`'s update, shape (T,), from the gramian (T, T).

    The gramian is sufficient, because every projection stays in the span of the gradients.
    """
    coefficients = torch.eye(len(gramian), dtype=gramian.dtype, device=gramian.device)
    for j in range(len(gramian)):
        inner = (coefficients @ gramian[j]).clamp(max=0) / gramian[j, j].clamp(min=torch.finfo(gramian.dtype).tiny)
        inner[j] = 0
        coefficients[:, j] -= inner
    return coefficients.sum(dim=0)


def priority_weights(gramian: Tensor) -> Tensor:
    """The weight of each gradient, shape (T,), from the gramian (T, T), if the last task has priority.

    Every other gradient that opposes the last one loses its component along it (A-GEM, arXiv 1812.00420, eq. 11). The
    last gradient is kept unchanged. PCGrad projects both ways, so a task with a small gradient can remove a direction
    from one with a large gradient. Here, to first order, the last task learns as fast as it would alone.
    """
    weights = torch.ones_like(gramian[0])
    opposed = gramian[:-1, -1].clamp(max=0).sum()
    weights[-1] -= opposed / gramian[-1, -1].clamp(min=torch.finfo(gramian.dtype).tiny)
    return weights


def adaptive_weights(gramian: Tensor, rescale: str = "paper") -> Tensor:
    """The weight of each gradient in `adaptive_gradient_surgery`'s update, shape (T,), from the gramian (T, T).

    Raises:
        ValueError: ``rescale`` is unknown.
    """
    if rescale not in ("paper", "always", "never"):
        raise ValueError(f"rescale must be 'paper', 'always' or 'never', got {rescale!r}")
    weights = pcgrad_weights(gramian)
    if rescale == "never":
        return weights
    squared, wanted = weights @ gramian @ weights, gramian.sum()
    cancelled = squared <= _CANCELLED * (weights.square() @ gramian.diagonal())
    unchanged = cancelled | (squared >= wanted) if rescale == "paper" else cancelled
    return weights * torch.where(unchanged, 1.0, wanted / squared).clamp(min=0).sqrt()


def find_weighting(surgery: Surgery, rescale: Rescale) -> Weighting | None:
    """The weighting of a surgery; None for the plain sum of the gradients.

    ``pcgrad``, ``adaptive`` and ``priority`` are implemented here. The others are torchjd's:

    - ``cagrad`` (arXiv 2110.14048, c = `CAGRAD_C`) maximises the slowest task's decrease within a ball around the mean
      gradient, of c times its norm.
    - ``mgda`` (Désidéri 2012; arXiv 1810.04650) is the convex combination with the smallest norm.
    - ``imtl-g`` (Liu et al., ICLR 2021) has equal projections on all tasks' gradients.

    These three are averages and the others are sums. Their steps are therefore shorter at the same learning rate.

    Raises:
        SettingsError: torchjd is not installed, or its solver for ``cagrad`` is not.
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
        # With torchjd's default threshold, 1e-4, small gradients count as a solution and training stops silently.
        return partial(_by_torchjd, CAGradWeighting(c=CAGRAD_C, norm_eps=1e-12))
    except ImportError:
        raise SettingsError(
            f"--surgery {surgery.value} needs a library that is not installed. Install it with pip install 'cytomil[surgery]'."
        ) from None


def _by_torchjd(weighting: Weighting, gramian: Tensor) -> Tensor:
    if not bool(torch.isfinite(gramian).all()):
        # The solvers raise on NaN. The training loop reports divergence with a message of its own.
        return torch.ones_like(gramian[0])
    return weighting(gramian)
