"""The encoder as training runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cytomil.encoders.architecture import Architecture, Encoder
from cytomil.encoders.engines.eager import to_unit_range
from cytomil.encoders.stages import early_parameters, usual_frozen_stages
from cytomil.errors import SettingsError
from cytomil.training.processes import Processes

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


# A module and its pixels → h and z.
Network = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]


def compiled(network: Network, note: Callable[[str], None]) -> Network:
    """``network`` as torch.compile makes it at its first call, a minute's work; on a failure itself, and a line to ``note``.

    It computes the same but for rounding. A processor needs a C++ compiler, a GPU Triton.
    """
    import torch._functorch.config as of_autograd
    from torch._dynamo.exc import TorchDynamoException

    # Several tasks may send their gradients back through one graph, whose buffers the first may then not reuse.
    of_autograd.donated_buffer = False
    # Code for each batch size by itself, lest it depend on which came first: a resumed run begins with another.
    current = torch.compile(network, dynamic=False)

    def run(module: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal current
        try:
            return current(module, pixels)
        except TorchDynamoException as error:
            if current is network:
                raise
            note(f"the network is not compiled, but trained all the same: torch.compile failed ({_reason(error)})")
            current = network
            return network(module, pixels)

    return run


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    # Of some failures the first line only names the backend that failed.
    return next((line for line in lines if line and not line.endswith("raised:")), type(error).__name__)


_BLOCK = 256


@torch.no_grad()
def embed_cells(encoder: Encoder, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels uint8 (N, S, S, 3) → h (N, H), z (N, D), float32 on the CPU, in evaluation mode.

    The encoder is left in the mode it was in.
    """
    was_training = encoder.training
    encoder.eval()
    device = encoder.mean.device
    blocks = [encoder(to_unit_range(block, device)) for block in pixels.split(_BLOCK)]
    encoder.train(was_training)
    h, z = (torch.cat(parts).float().cpu() for parts in zip(*blocks, strict=True))
    return h, z


class TrainingEncoder(Encoder):
    """In training mode each process runs its share of the rows, in ``precision``, and returns the whole in float32.

    In evaluation mode it is the plain encoder. Weights have the same names as the plain encoder's.

    With ``from_weights`` the backbone is to start from others' weights. Its stem and first ``frozen_stages`` stages are then
    not trained, and all its batch norms keep the statistics that they came with. Raises `SettingsError` for stages that it
    has not, and for an architecture whose batch norms several processes cannot share where they follow the batches.
    """

    def __init__(
        self,
        architecture: Architecture,
        precision: torch.dtype,
        processes: Processes,
        from_weights: bool = False,
        frozen_stages: int | None = None,
    ) -> None:
        super().__init__(architecture)
        self._precision, self._processes = precision, processes
        self._keeps_statistics = from_weights
        follows: nn.Module = self.projector if self._keeps_statistics else self
        if processes.count > 1:
            _require_plain_batch_norms(follows, architecture)
        processes.share_statistics(follows)
        replace_convolutions(self)
        if frozen_stages is None:
            frozen_stages = usual_frozen_stages(self) if from_weights else 0
        self.frozen_stages = frozen_stages
        for parameter in early_parameters(self, frozen_stages):
            parameter.requires_grad_(False)
        self._network: Network = Encoder.project  # type: ignore[assignment]

    def train(self, mode: bool = True) -> Self:
        """What is frozen stays in evaluation mode: batch norms and, in frozen stages, whatever else training changes."""
        super().train(mode)
        if mode and self._keeps_statistics:
            for module in self.backbone.modules():
                if isinstance(module, _BatchNorm) or _is_frozen(module):
                    module.eval()
        return self

    def use_compiler(self, note: Callable[[str], None]) -> None:
        """Train by torch.compile's code from now on, where it works; one line to ``note`` where it does not."""
        if self._processes.count > 1:
            note("the network is not compiled: several processes train it")
            return
        self._network = compiled(self._network, note)

    def project(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The whole batch's pixels (N, 3, S, S) in 0 to 1 → its h, and its z before standardising."""
        if not self.training:
            return super().project(pixels)
        own = self._processes.share(pixels)
        reduced = self._precision is not torch.float32
        with torch.autocast(pixels.device.type, dtype=self._precision, enabled=reduced):
            h, raw = self._network(self, own)
        if reduced:
            h, raw = h.float(), raw.float()
        return self._processes.gather(h, len(pixels)), self._processes.gather(raw, len(pixels))


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def _require_plain_batch_norms(part: nn.Module, architecture: Architecture) -> None:
    for module in part.modules():
        if isinstance(module, _BatchNorm) and type(module) not in (nn.BatchNorm1d, nn.BatchNorm2d):
            # Putting another kind in its place would drop what else it does, such as the activation of timm's.
            raise SettingsError(
                f"{architecture.name} has batch norms of its own kind ({type(module).__name__}), whose statistics "
                "several processes cannot share. Train it in one process, start from weights, or use another --arch."
            )
