"""PAMIL's shared layer as one step of autograd: most of a fit's time that is not matrix products went between its parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_LEAST_NORM = 1e-12


class UnitHidden(torch.autograd.Function):
    """normalize(relu(x Wᵀ + b)), rows of unit length: x (N, D), W (H, D), b (H,) → (N, H), computed in x's dtype.

    With r = relu(x Wᵀ + b) and h = r / ‖r‖, a gradient g of h becomes (g - h (g·h)) / ‖r‖ where r > 0, and 0 elsewhere.
    A row whose r is all 0 stays 0 and passes no gradient on.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """See the class."""
        ctx.of = weight.dtype
        weight = weight.to(x.dtype)
        hidden = torch.addmm(bias.to(x.dtype), x, weight.T).relu_()
        inverse = torch.linalg.vector_norm(hidden, dim=1, keepdim=True).clamp_min_(_LEAST_NORM).reciprocal_()
        hidden *= inverse
        ctx.save_for_backward(x, weight, hidden, inverse)
        return hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """See the class."""
        x, weight, hidden, inverse = ctx.saved_tensors
        along = torch.linalg.vecdot(gradient, hidden, dim=1).unsqueeze(1)
        before = torch.addcmul(gradient, hidden, along, value=-1).mul_(inverse)
        before = torch.ops.aten.threshold_backward(before, hidden, 0)
        of_x = before @ weight if ctx.needs_input_grad[0] else None
        return of_x, (before.T @ x).to(ctx.of), before.sum(dim=0, dtype=ctx.of)
