"""Convolutions to maps of a few positions as matrix products, one a position: on processors twice as fast to train.

oneDNN's convolutions are made for larger maps. Of a 3×3 kernel on 2×2 positions more than half of what they multiply is
padding, and their gradient of the weights reaches a third of the speed of plain matrix products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_MOST_POSITIONS = 4

# One output position: the rows and columns of the map, and those of the kernel, that meet there.
_Window = tuple[slice, slice, slice, slice]


class SmallMapConv(nn.Conv2d):
    """A convolution that becomes matrix products where its output has at most four positions, on a processor.

    The same sums in another order: results differ from `torch.nn.Conv2d`'s by rounding alone.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) → (N, C', H', W')."""
        rows, columns = (
            _meetings(x.shape[2 + i], self.kernel_size[i], self.stride[i], int(self.padding[i])) for i in (0, 1)
        )
        if x.device.type != "cpu" or len(rows) * len(columns) > _MOST_POSITIONS:
            return super().forward(x)
        windows: list[_Window] = [
            (row, column, of_kernel, beside) for row, of_kernel in rows for column, beside in columns
        ]
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        y: Tensor = _Products.apply(x.permute(0, 2, 3, 1), self.weight.permute(0, 2, 3, 1), windows)
        return y.unflatten(1, (len(rows), len(columns))).permute(0, 3, 1, 2)


class _Products(torch.autograd.Function):
    """``x`` (N, H, W, C) and ``weight`` (C', h, w, C), which may be of a finer number format → (N, positions, C')."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, windows: list[_Window]) -> Tensor:
        weight_as_x = weight.to(x.dtype)
        kernels = [weight_as_x[:, above, beside].flatten(1) for _, _, above, beside in windows]
        ctx.save_for_backward(x, weight, *kernels)
        ctx.windows = windows
        seen = (x[:, rows, columns].flatten(1) for rows, columns, _, _ in windows)
        return torch.stack([window @ kernel.T for window, kernel in zip(seen, kernels, strict=True)], dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *kernels = ctx.saved_tensors
        of_x, of_weight = torch.zeros_like(x), torch.zeros_like(weight)
        positions = zip(gradients[0].unbind(1), kernels, ctx.windows, strict=True)
        for of_y, kernel, (rows, columns, above, beside) in positions:
            seen, part = x[:, rows, columns], of_x[:, rows, columns]
            part.add_((of_y @ kernel).view(part.shape))
            met = of_weight[:, above, beside]
            met.add_((of_y.T @ seen.flatten(1)).view(met.shape))
        return of_x, of_weight, None


def replace_convolutions(module: nn.Module) -> None:
    """Put a `SmallMapConv` with the same weights in the place of every plain convolution without bias in ``module``."""
    for name, child in module.named_children():
        if type(child) is not nn.Conv2d:
            replace_convolutions(child)
        elif _is_plain(child):
            # On the meta device no weights are drawn, so that the generator goes on as it would have.
            new = SmallMapConv(
                child.in_channels,
                child.out_channels,
                child.kernel_size,  # type: ignore[arg-type]
                child.stride,  # type: ignore[arg-type]
                child.padding,  # type: ignore[arg-type]
                bias=False,
                device="meta",
            )
            new.weight = child.weight
            setattr(module, name, new)


def _is_plain(conv: nn.Conv2d) -> bool:
    return (
        conv.bias is None
        and conv.groups == 1
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and isinstance(conv.padding, tuple)
        and all(padding < kernel for padding, kernel in zip(conv.padding, conv.kernel_size, strict=True))
    )


def _meetings(side: int, kernel: int, stride: int, padding: int) -> list[tuple[slice, slice]]:
    """Along one axis, for each output position: the part of the map, and the part of the kernel, that meet there."""
    starts = range(-padding, side + padding - kernel + 1, stride)
    return [
        (slice(max(start, 0), min(start + kernel, side)), slice(max(-start, 0), min(kernel, side - start)))
        for start in starts
    ]
