"""Training in one process, or in several that torchrun started: gloo between CPUs, NCCL between GPUs.

NCCL has only been tried with a single process so far. Every process draws the whole batch and runs its shard of the
rows through the encoder. The results are gathered before the losses, because contrastive negatives must come from every
process.
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
    """The collective operations of training.

    Every process must call the same methods in the same order. Only the first one writes, prints and saves checkpoints.
    """

    count: int
    is_first: bool
    device: torch.device
    on_this_machine: int

    def shard(self, rows: Tensor) -> Tensor:
        """The shard of ``rows`` that this process runs, along the first axis."""
        ...

    def gather(self, own: Tensor, n: int) -> Tensor:
        """All ``n`` rows, from the shards of all processes. Gradients flow back to this process's shard.

        Every process must compute the same loss from all rows. Each then holds the gradient of its own shard, and
        `all_reduce` adds them up to the gradient of the loss.
        """
        ...

    def all_reduce(self, gradients: Tensor) -> None:
        """Replace the gradients in place by their sum over all processes."""
        ...

    def broadcast(self, *tensors: Tensor) -> None:
        """Replace the tensors in place by those of the first process."""
        ...

    def synchronise_batch_norms(self, module: nn.Module) -> None:
        """Make the module's batch norms compute their statistics over the shards of all processes."""
        ...

    def barrier(self) -> None:
        """Wait until all processes have called this."""
        ...


class OneProcess:
    """A single process, without PyTorch's distributed package."""

    count = 1
    is_first = True
    on_this_machine = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def shard(self, rows: Tensor) -> Tensor:
        """Return ``rows`` unchanged."""
        return rows

    def gather(self, own: Tensor, n: int) -> Tensor:
        """Return ``own`` unchanged."""
        return own

    def all_reduce(self, gradients: Tensor) -> None:
        """Do nothing."""

    def broadcast(self, *tensors: Tensor) -> None:
        """Do nothing."""

    def synchronise_batch_norms(self, module: nn.Module) -> None:
        """Do nothing."""

    def barrier(self) -> None:
        """Do nothing."""


@contextmanager
def training_processes(device: str) -> Iterator[Processes]:
    """The processes that torchrun started, or only this one without torchrun."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield OneProcess(pick_device(device))
        return

    with _process_group(device) as processes:
        yield processes


AllReduce = Callable[[Tensor], None]


class SynchronisedBatchNorm(_BatchNorm):
    """Batch norm with statistics over all processes. In evaluation mode it is plain batch norm.

    ``all_reduce`` replaces a tensor in place by its sum over the processes.
    """

    def __init__(
        self, all_reduce: AllReduce, num_features: int, eps: float, momentum: float | None, affine: bool
    ) -> None:
        super().__init__(num_features, eps, momentum, affine)
        self._add_up = all_reduce

    def forward(self, x: Tensor) -> Tensor:
        """Activations (n, C, …) of this process, n ≥ 0 → the same shape, in the weights' number format."""
        if not self.training:
            return super().forward(x)
        assert self.momentum is not None, "no encoder here uses a cumulative average"
        y, mean, variance, n = _Normalise.apply(x.to(self.weight.dtype), self.weight, self.bias, self.eps, self._add_up)
        with torch.no_grad():
            if self.running_mean is not None and self.running_var is not None:
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * (n / (n - 1)), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        return y

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        """Accept any number of dimensions."""


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, all_reduce: AllReduce
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        over, shape = _axes(x)
        sums = torch.cat([x.sum(over), x.new_tensor([x.numel() / x.shape[1]])])
        all_reduce(sums)
        n, mean = sums[-1], sums[:-1] / sums[-1]
        centred = x - mean.view(shape)
        variance = centred.square().sum(over)
        all_reduce(variance)
        variance /= n
        inverse = (variance + eps).rsqrt()
        normal = centred.mul_(inverse.view(shape))
        ctx.save_for_backward(normal, weight, inverse, n)
        ctx.all_reduce = all_reduce
        ctx.mark_non_differentiable(mean, variance, n)
        return torch.addcmul(bias.view(shape), normal, weight.view(shape)), mean, variance, n

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        normal, weight, inverse, n = ctx.saved_tensors
        over, shape = _axes(normal)
        of_y = gradients[0]
        of_bias, of_weight = of_y.sum(over), (of_y * normal).sum(over)
        means = torch.stack([of_bias, of_weight])
        ctx.all_reduce(means)
        means /= n
        of_x = (of_y - means[0].view(shape) - normal * means[1].view(shape)) * (weight * inverse).view(shape)
        return of_x, of_weight, of_bias, None, None


def replace_batch_norms(module: nn.Module, make: Callable[[_BatchNorm], _BatchNorm]) -> None:
    """Replace every batch norm in ``module`` by ``make(old)``, and keep its weights and running statistics."""
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
    """All axes except the channels, and the shape that broadcasts one value per channel."""
    return [axis for axis in range(x.ndim) if axis != 1], [1, -1, *[1] * (x.ndim - 2)]


_FAILED = "cytomil/failed"


class TorchrunProcesses:
    """Processes that torchrun started. The default process group must be initialised."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.count = dist.get_world_size()
        self.index = dist.get_rank()
        self.is_first = self.index == 0
        self.on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    def shard(self, rows: Tensor) -> Tensor:
        """See `Processes.shard`. The sizes of shards differ by at most one row."""
        return rows.tensor_split(self.count)[self.index]

    def gather(self, own: Tensor, n: int) -> Tensor:
        """Parts side by side, in the processes' order."""
        whole: Tensor = _Gather.apply(own, n, self)
        return whole

    def all_reduce(self, gradients: Tensor) -> None:
        """See `Processes.all_reduce`."""
        _communicate(dist.all_reduce, gradients)

    def broadcast(self, *tensors: Tensor) -> None:
        """See `Processes.broadcast`."""
        for tensor in tensors:
            _communicate(dist.broadcast, tensor, 0)

    def synchronise_batch_norms(self, module: nn.Module) -> None:
        """See `Processes.synchronise_batch_norms`. GPUs use PyTorch's synchronised batch norm, which has no CPU version."""
        if self.device.type == "cuda":
            replace_batch_norms(
                module, lambda old: nn.SyncBatchNorm(old.num_features, old.eps, old.momentum, old.affine)
            )
        else:
            replace_batch_norms(
                module,
                lambda old: SynchronisedBatchNorm(self.all_reduce, old.num_features, old.eps, old.momentum, old.affine),
            )

    def barrier(self) -> None:
        """See `Processes.barrier`."""
        _communicate(dist.barrier)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, n: int, processes: TorchrunProcesses) -> Tensor:
        # An all_gather needs shards of equal length. A sum of shards that are zero elsewhere is exact, too.
        whole = own.new_zeros(n, *own.shape[1:])
        processes.shard(whole).copy_(own)
        processes.all_reduce(whole)
        ctx.processes = processes
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.processes.shard(gradients[0]), None, None


@contextmanager
def _process_group(device: str) -> Iterator[TorchrunProcesses]:
    """Join the processes that torchrun started, and leave them at the end.

    The first process that fails raises its own error. The others raise `EndedElsewhereError` and print nothing.
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
        return rank == 0  # the process that held the store has ended


def _communicate(operation: Callable[..., Any], *arguments: Any) -> None:
    try:
        operation(*arguments)
    except RuntimeError as error:
        raise TrainingProcessError(
            f"another training process ended or cannot be reached ({str(error).splitlines()[0]}). "
            "Run the same command again. Training continues after the last complete epoch."
        ) from None
