"""A part of the training step made by PyTorch's compiler, where there is one that works."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

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
