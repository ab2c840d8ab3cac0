"""Batch norm whose statistics are taken over the parts of a batch that several processes hold, on any device.

PyTorch's SyncBatchNorm runs on GPUs alone; between CPUs this one stands in. The formulae are those of batch norm (Ioffe &
Szegedy, arXiv 1502.03167) with every mean taken over all parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

AddUp = Callable[[Tensor], None]


class SharedBatchNorm(_BatchNorm):
    """``add_up`` replaces a tensor, in place, by its sum over the processes. In evaluation it is plain batch norm."""

    def __init__(self, add_up: AddUp, num_features: int, eps: float, momentum: float | None, affine: bool) -> None:
        super().__init__(num_features, eps, momentum, affine)
        self._add_up = add_up

    def forward(self, x: Tensor) -> Tensor:
        """Activations (n, C, …), n ≥ 0 of this process → the same shape, in the weights' number format."""
        if not self.training:
            return super().forward(x)
        assert self.momentum is not None, "a cumulative average is not used by any encoder here"
        y, mean, variance, n = _Normalise.apply(x.to(self.weight.dtype), self.weight, self.bias, self.eps, self._add_up)
        with torch.no_grad():
            if self.running_mean is not None and self.running_var is not None:
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * (n / (n - 1)), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        return y

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        """Any number of dimensions will do."""


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, add_up: AddUp
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        over, shape = _axes(x)
        sums = torch.cat([x.sum(over), x.new_tensor([x.numel() / x.shape[1]])])
        add_up(sums)
        n, mean = sums[-1], sums[:-1] / sums[-1]
        centred = x - mean.view(shape)
        variance = centred.square().sum(over)
        add_up(variance)
        variance /= n
        inverse = (variance + eps).rsqrt()
        normal = centred.mul_(inverse.view(shape))
        ctx.save_for_backward(normal, weight, inverse, n)
        ctx.add_up = add_up
        ctx.mark_non_differentiable(mean, variance, n)
        return torch.addcmul(bias.view(shape), normal, weight.view(shape)), mean, variance, n

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        normal, weight, inverse, n = ctx.saved_tensors
        over, shape = _axes(normal)
        of_y = gradients[0]
        of_bias, of_weight = of_y.sum(over), (of_y * normal).sum(over)
        means = torch.stack([of_bias, of_weight])
        ctx.add_up(means)
        means /= n
        of_x = (of_y - means[0].view(shape) - normal * means[1].view(shape)) * (weight * inverse).view(shape)
        return of_x, of_weight, of_bias, None, None


def replace_batch_norms(module: nn.Module, make: Callable[[_BatchNorm], _BatchNorm]) -> None:
    """Put ``make(old)`` in the place of every batch norm in ``module``; weights and running statistics stay the same."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            new = make(child)
            new.weight, new.bias = child.weight, child.bias
            new.running_mean, new.running_var = child.running_mean, child.running_var
            new.num_batches_tracked = child.num_batches_tracked
            setattr(module, name, new)
        else:
            replace_batch_norms(child, make)


def _axes(x: Tensor) -> tuple[list[int], list[int]]:
    """All axes but the channels', and the shape that broadcasts one value a channel."""
    return [axis for axis in range(x.ndim) if axis != 1], [1, -1, *[1] * (x.ndim - 2)]
