"""Training in one process, or in several that torchrun started: gloo between CPUs, NCCL between GPUs.

NCCL has been run by one process alone so far. Every process draws the whole batch and computes its shard of the rows.
The results are gathered before the losses, so that contrastive negatives come from every process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.modules.batchnorm import _BatchNorm

from cytomil.encoders.bundle import pick_device
from cytomil.errors import EndedElsewhereError, TrainingProcessError


class Processes(Protocol):
    """Every process calls the same methods in the same order. Only the first one writes, prints and checkpoints."""

    count: int
    is_first: bool
    device: torch.device
    on_this_machine: int

    def share(self, rows: Tensor) -> Tensor:
        """Own part of the whole, along the first axis."""
        ...

    def gather(self, own: Tensor, n: int) -> Tensor:
        """The whole, ``n`` rows, from every process's own part; gradients flow back to the part.

        Each process must take the same loss of the whole: each then holds the gradient of its own part's share, and
        `add_up` makes the gradient of it.
        """
        ...

    def add_up(self, gradients: Tensor) -> None:
        """Replace, in place, each process's gradients by their sum."""
        ...

    def agree(self, *tensors: Tensor) -> None:
        """Replace, in place, each process's tensors by the first one's."""
        ...

    def share_statistics(self, module: nn.Module) -> None:
        """Make the module's batch norms take their statistics over every process's part."""
        ...

    def wait(self) -> None:
        """Go on when all have come here."""
        ...


class OneProcess:
    """The usual case: one process has the whole. Nothing of PyTorch's distributed package is started."""

    count = 1
    is_first = True
    on_this_machine = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def share(self, rows: Tensor) -> Tensor:
        """The whole."""
        return rows

    def gather(self, own: Tensor, n: int) -> Tensor:
        """The whole."""
        return own

    def add_up(self, gradients: Tensor) -> None:
        """Nothing to add."""

    def agree(self, *tensors: Tensor) -> None:
        """Nothing to agree on."""

    def share_statistics(self, module: nn.Module) -> None:
        """Nothing to share."""

    def wait(self) -> None:
        """Nobody to wait for."""


@contextmanager
def training_processes(device: str) -> Iterator[Processes]:
    """The processes that torchrun started, where it did; else this one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield OneProcess(pick_device(device))
        return

    with joined(device) as processes:
        yield processes


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


_FAILED = "cytomil/failed"


class TorchrunProcesses:
    """See `cytomil.training.processes.Processes`. The default process group must have been started."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.count = dist.get_world_size()
        self.index = dist.get_rank()
        self.is_first = self.index == 0
        self.on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    def share(self, rows: Tensor) -> Tensor:
        """Parts differ by one row at most."""
        return rows.tensor_split(self.count)[self.index]

    def gather(self, own: Tensor, n: int) -> Tensor:
        """Parts side by side, in the processes' order."""
        whole: Tensor = _Gather.apply(own, n, self)
        return whole

    def add_up(self, gradients: Tensor) -> None:
        """One sum over the network for all of them."""
        _speak(dist.all_reduce, gradients)

    def agree(self, *tensors: Tensor) -> None:
        """Broadcast from the first process."""
        for tensor in tensors:
            _speak(dist.broadcast, tensor, 0)

    def share_statistics(self, module: nn.Module) -> None:
        """PyTorch's own synchronised batch norm on GPUs; it has none for CPUs."""
        if self.device.type == "cuda":
            replace_batch_norms(
                module, lambda old: nn.SyncBatchNorm(old.num_features, old.eps, old.momentum, old.affine)
            )
        else:
            replace_batch_norms(
                module,
                lambda old: SharedBatchNorm(self.add_up, old.num_features, old.eps, old.momentum, old.affine),
            )

    def wait(self) -> None:
        """Go on when all have come here."""
        _speak(dist.barrier)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, n: int, processes: TorchrunProcesses) -> Tensor:
        # A sum of parts that are zero elsewhere: exact, and parts may differ in length.
        whole = own.new_zeros(n, *own.shape[1:])
        processes.share(whole).copy_(own)
        processes.add_up(whole)
        ctx.processes = processes
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.processes.share(gradients[0]), None, None


@contextmanager
def joined(device: str) -> Iterator[TorchrunProcesses]:
    """Join the processes that torchrun started, and leave them at the end.

    The first process that fails raises its own error; the others raise `EndedElsewhereError`, and say nothing.
    """
    chosen = pick_device(device)
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(chosen)
    store, rank, count = next(rendezvous("env://"))
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", store=store, rank=rank, world_size=count)
    try:
        yield TorchrunProcesses(chosen)
    except BaseException as error:
        if not _is_first_to_fail(store, rank):
            raise EndedElsewhereError from error
        raise
    finally:
        dist.destroy_process_group()


def _is_first_to_fail(store: Store, rank: int) -> bool:
    try:
        return store.compare_set(_FAILED, "", str(rank)) == str(rank).encode()
    except (RuntimeError, OSError):
        return rank == 0  # whoever held the store has ended before


def _speak(operation: Callable[..., Any], *arguments: Any) -> None:
    try:
        operation(*arguments)
    except RuntimeError as error:
        raise TrainingProcessError(
            f"another training process ended or cannot be reached ({str(error).splitlines()[0]}). "
            "Start the same line again: training goes on after its last whole epoch."
        ) from None
