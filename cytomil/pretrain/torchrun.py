"""Training on several processes started by torchrun: gloo between CPUs, NCCL between GPUs (run by one process alone so far).

Every process sees the whole batch and works out its own share of the network's rows. The results are put together
before the losses, so that contrastive negatives come from every process and the losses need not know.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cytomil.encoders.bundle import pick_device
from cytomil.errors import EndedElsewhereError, TrainingProcessError
from cytomil.pretrain.shared_batch_norm import SharedBatchNorm, replace_batch_norms

_FAILED = "cytomil/failed"


class TorchrunProcesses:
    """See `cytomil.pretrain.processes.Processes`. The default process group must have been started."""

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
    store, rank, count = next(dist.rendezvous("env://"))
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", store=store, rank=rank, world_size=count)
    try:
        yield TorchrunProcesses(chosen)
    except BaseException as error:
        if not _is_first_to_fail(store, rank):
            raise EndedElsewhereError from error
        raise
    finally:
        dist.destroy_process_group()


def _is_first_to_fail(store: dist.Store, rank: int) -> bool:
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
