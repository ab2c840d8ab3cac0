"""The encoder in training: mixed precision, several processes, frozen stages and torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cytomil.encoders.architecture import Architecture, Encoder
from cytomil.encoders.engines.engine import to_unit_range
from cytomil.encoders.stages import default_frozen_stages, early_parameters
from cytomil.errors import SettingsError
from cytomil.training.processes import Processes

_MAX_POSITIONS = 4

# One output position: the rows and columns of the map, and those of the kernel, that overlap.
_Window = tuple[slice, slice, slice, slice]


class SmallMapConv(nn.Conv2d):
    """A convolution that uses matrix products on a processor if its output has at most four positions.

    oneDNN takes twice as long for these. Results differ from those of `torch.nn.Conv2d` by rounding only.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) → (N, C', H', W')."""
        rows, columns = (
            _overlaps(x.shape[2 + i], self.kernel_size[i], self.stride[i], int(self.padding[i])) for i in (0, 1)
        )
        if x.device.type != "cpu" or len(rows) * len(columns) > _MAX_POSITIONS:
            return super().forward(x)
        windows: list[_Window] = [
            (row, column, kernel_rows, kernel_columns)
            for row, kernel_rows in rows
            for column, kernel_columns in columns
        ]
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        y: Tensor = _Products.apply(x.permute(0, 2, 3, 1), self.weight.permute(0, 2, 3, 1), windows)
        return y.unflatten(1, (len(rows), len(columns))).permute(0, 3, 1, 2)


class _Products(torch.autograd.Function):
    """``x`` (N, H, W, C), ``weight`` (C', h, w, C) → (N, positions, C') in the number format of ``x``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, windows: list[_Window]) -> Tensor:
        converted = weight.to(x.dtype)
        kernels = [
            converted[:, kernel_rows, kernel_columns].flatten(1) for _, _, kernel_rows, kernel_columns in windows
        ]
        ctx.save_for_backward(x, weight, *kernels)
        ctx.windows = windows
        patches = (x[:, rows, columns].flatten(1) for rows, columns, _, _ in windows)
        return torch.stack([patch @ kernel.T for patch, kernel in zip(patches, kernels, strict=True)], dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *kernels = ctx.saved_tensors
        of_x, of_weight = torch.zeros_like(x), torch.zeros_like(weight)
        positions = zip(gradients[0].unbind(1), kernels, ctx.windows, strict=True)
        for of_y, kernel, (rows, columns, kernel_rows, kernel_columns) in positions:
            patch, of_patch = x[:, rows, columns], of_x[:, rows, columns]
            of_patch.add_((of_y @ kernel).view(of_patch.shape))
            of_kernel = of_weight[:, kernel_rows, kernel_columns]
            of_kernel.add_((of_y.T @ patch.flatten(1)).view(of_kernel.shape))
        return of_x, of_weight, None


def replace_convolutions(module: nn.Module) -> None:
    """Replace every plain convolution without bias in ``module`` by a `SmallMapConv` with the same weights."""
    for name, child in module.named_children():
        if type(child) is not nn.Conv2d:
            replace_convolutions(child)
        elif _is_plain(child):
            # On the meta device no weights are drawn, which would advance the global generator.
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


def _overlaps(side: int, kernel: int, stride: int, padding: int) -> list[tuple[slice, slice]]:
    """Along one axis, for each output position: the parts of the map and of the kernel that overlap."""
    starts = range(-padding, side + padding - kernel + 1, stride)
    return [
        (slice(max(start, 0), min(start + kernel, side)), slice(max(-start, 0), min(kernel, side - start)))
        for start in starts
    ]


# A module and its pixels → h and z.
Network = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]


def compiled(network: Network, note: Callable[[str], None]) -> Network:
    """Compile ``network`` with torch.compile at its first call, which takes about a minute.

    If compilation fails, ``note`` receives one line and ``network`` runs uncompiled. Results differ by rounding only. A
    processor needs a C++ compiler, a GPU needs Triton.
    """
    import torch._functorch.config as of_autograd
    from torch._dynamo.exc import TorchDynamoException

    # Several tasks may backpropagate through the same graph. The first one must not reuse its buffers.
    of_autograd.donated_buffer = False
    # Each batch size is compiled separately. Otherwise the code would depend on the first one, and a resumed run may
    # start with another size.
    current = torch.compile(network, dynamic=False)

    def run(module: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal current
        try:
            return current(module, pixels)
        except TorchDynamoException as error:
            if current is network:
                raise
            note(f"the network is trained uncompiled, because torch.compile failed ({_reason(error)})")
            current = network
            return network(module, pixels)

    return run


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    # The first line of some failures only names the backend.
    return next((line for line in lines if line and not line.endswith("raised:")), type(error).__name__)


_BLOCK = 256


@torch.no_grad()
def embed_cells(encoder: Encoder, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels uint8 (N, S, S, 3) → h (N, H), z (N, D), float32 on the CPU, in evaluation mode.

    Restores the encoder's mode afterwards.
    """
    was_training = encoder.training
    encoder.eval()
    device = encoder.mean.device
    blocks = [encoder(to_unit_range(block, device)) for block in pixels.split(_BLOCK)]
    encoder.train(was_training)
    h, z = (torch.cat(parts).float().cpu() for parts in zip(*blocks, strict=True))
    return h, z


class TrainingEncoder(Encoder):
    """An encoder whose forward pass in training mode runs in ``precision`` and is sharded over processes.

    Each process runs its shard of the rows, and all rows are returned in float32. In evaluation mode it is the plain
    encoder. The names of the weights are those of the plain encoder.

    Args:
        architecture: the architecture of the encoder.
        precision: the number format inside the network.
        processes: the processes that train together.
        from_weights: the backbone will start from weights. All its batch norms then keep their statistics.
        frozen_stages: the stem and this number of first stages are not trained; None: `default_frozen_stages` with
            ``from_weights``, otherwise 0.

    Raises:
        SettingsError: the encoder has fewer stages, or it has batch norms that cannot be synchronised and there are
            several processes.
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
        updated: nn.Module = self.projector if self._keeps_statistics else self
        if processes.count > 1:
            _require_plain_batch_norms(updated, architecture)
        processes.synchronise_batch_norms(updated)
        replace_convolutions(self)
        if frozen_stages is None:
            frozen_stages = default_frozen_stages(self) if from_weights else 0
        self.frozen_stages = frozen_stages
        for parameter in early_parameters(self, frozen_stages):
            parameter.requires_grad_(False)
        self._network: Network = Encoder.project  # type: ignore[assignment]

    def train(self, mode: bool = True) -> Self:
        """Set the mode, except of frozen parts, which stay in evaluation mode.

        These are the frozen stages and, if the encoder starts from weights, all batch norms of the backbone.
        """
        super().train(mode)
        if mode and self._keeps_statistics:
            for module in self.backbone.modules():
                if isinstance(module, _BatchNorm) or _is_frozen(module):
                    module.eval()
        return self

    def use_compiler(self, note: Callable[[str], None]) -> None:
        """Train with torch.compile from now on. If that is not possible, ``note`` receives one line."""
        if self._processes.count > 1:
            note("the network is trained uncompiled, because several processes train it")
            return
        self._network = compiled(self._network, note)

    def project(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels of the whole batch (N, 3, S, S) in 0 to 1 → h, and z before standardisation."""
        if not self.training:
            return super().project(pixels)
        own = self._processes.shard(pixels)
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
            # A replacement would lose other functions of the layer, such as the activation in timm's.
            raise SettingsError(
                f"{architecture.name} has batch norms ({type(module).__name__}) that several processes cannot synchronise. "
                "Train it in one process, start from weights, or use another --arch."
            )
