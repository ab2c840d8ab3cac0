"""One update of the weights: forward, losses, a gradient a task, their combination, the optimiser."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cytomil.encoders.architecture import Encoder
from cytomil.training.config import PretrainConfig
from cytomil.training.methods import Batch, Method
from cytomil.training.processes import Processes
from cytomil.training.surgery import combine, inner_products


class FlatWeights:
    """Moves parameters into one buffer (they become views of it) and keeps a gradient a task beside it.

    ``values``, shape (P,), is what the optimiser steps; ``gradients``, shape (T, P), is what was written last. Each
    parameter keeps its shape and memory format. The module must not be moved to another device afterwards.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        first = self.parameters[0]
        n = sum(parameter.numel() for parameter in self.parameters)
        self.values = nn.Parameter(torch.empty(n, dtype=first.dtype, device=first.device))
        self.gradients = torch.empty(0, n, dtype=first.dtype, device=first.device)
        self._windows: list[list[Tensor]] = []
        for parameter, window in zip(self.parameters, self._windows_of(self.values.detach()), strict=True):
            window.copy_(parameter.detach())
            parameter.data = window

    def write_gradients(self, tasks: Sequence[Sequence[Tensor]]) -> Tensor:
        """Copy one gradient a parameter for each task into the buffer kept for them: shape (T, P), reused every step."""
        if len(tasks) != len(self.gradients):
            self.gradients = self.gradients.new_empty(len(tasks), self.values.numel())
            self._windows = [self._windows_of(row) for row in self.gradients]
        for windows, gradients in zip(self._windows, tasks, strict=True):
            torch._foreach_copy_(windows, list(gradients))
        return self.gradients

    def _windows_of(self, flat: Tensor) -> list[Tensor]:
        start, windows = flat.storage_offset(), []
        for parameter in self.parameters:
            windows.append(flat.as_strided(parameter.shape, parameter.stride(), start))
            start += parameter.numel()
        return windows


# The scale begins at 2^16 and is halved where a gradient overflows: below this, not the scale is at fault.
_LEAST = 2.0**-10


class LossScale:
    """PyTorch's gradient scaler around one optimiser, where ``precision`` is float16; otherwise it changes nothing.

    Nothing but `is_spent` waits for the device.
    """

    def __init__(self, device: torch.device, precision: torch.dtype) -> None:
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision is torch.float16)
        self._one = torch.ones((), device=device)

    @property
    def used(self) -> bool:
        """Whether losses are scaled at all."""
        return self._scaler.is_enabled()

    def value(self) -> Tensor:
        """By what losses, and with them gradients, are multiplied now: a scalar of its own."""
        return self._scaler.scale(self._one)

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss whose gradients float16 holds."""
        return self._scaler.scale(loss)

    def step(self, optimizer: torch.optim.Optimizer) -> Tensor | None:
        """One step by scaled gradients, or none where one of them is not finite; then the scale of the next step.

        Returns a scalar, 1 where the step was skipped, else 0; None where losses are not scaled.
        """
        if not self.used:
            optimizer.step()
            return None
        before = self.value()
        self._scaler.step(optimizer)
        self._scaler.update()
        return (self.value() < before).float()

    def is_spent(self) -> bool:
        """Whether gradients overflow at any scale; waits for the device."""
        return self.used and self._scaler.get_scale() < _LEAST

    def state_dict(self) -> dict[str, Any]:
        """What the next step's scale depends on; empty where losses are not scaled."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``, or from the first scale where it was made without scaling."""
        if state:
            self._scaler.load_state_dict(state)


class Step:
    """Updates an encoder, and what the method trains along with it, batch by batch.

    Nothing here waits for the device: what a step measures stays a tensor on it.
    """

    def __init__(
        self,
        encoder: Encoder,
        method: Method,
        settings: PretrainConfig,
        processes: Processes,
        precision: torch.dtype = torch.float32,
    ) -> None:
        self.encoder, self.method, self.processes = encoder, method, processes
        # A method may have frozen some of the encoder's weights, or keep weights of its own that are not trained.
        self.shared = FlatWeights(weight for weight in encoder.parameters() if weight.requires_grad)
        own = [weight for weight in method.parameters() if weight.requires_grad]
        self.own = FlatWeights(own) if own else None
        self.optimizer = torch.optim.SGD(
            [self.shared.values, *([self.own.values] if self.own else [])],
            lr=0.0,  # given anew with each step
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        if settings.momentum:
            # PyTorch allocates these in the first step, and leaves them as they come where that step is skipped.
            for flat in self._flats():
                self.optimizer.state[flat.values]["momentum_buffer"] = torch.zeros_like(flat.values)
        self.loss_scale = LossScale(processes.device, precision)

    def __call__(self, batch: Batch, learning_rate: float) -> dict[str, Tensor | float]:
        """Take one step. Returns scalars to be averaged over an epoch: ``loss_…`` a task, chance level, gradients.

        Where losses are scaled, ``skipped_steps`` is 1 for a step that was not taken because a gradient overflowed; what
        it says of gradients is then 0.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        losses = self.method.losses(self.encoder, batch)
        measured: dict[str, Tensor | float] = {f"loss_{name}": loss.detach() for name, loss in losses.items()}
        if self.method.contrast in losses:
            measured["chance"] = self.method.chance(batch)
        measured |= self._update(list(losses.values()))
        return measured | {"learning_rate": learning_rate}

    def weights_are_finite(self) -> bool:
        """Whether no weight is NaN or infinite; waits for the device."""
        return all(bool(torch.isfinite(flat.values).all()) for flat in self._flats())

    def agree(self) -> None:
        """Give every process the first one's weights."""
        with torch.no_grad():
            self.processes.agree(*(flat.values for flat in self._flats()))

    def _flats(self) -> list[FlatWeights]:
        return [flat for flat in (self.shared, self.own) if flat]

    def _update(self, losses: list[Tensor]) -> dict[str, Tensor]:
        tasks = losses if self.method.weigh else [torch.stack(losses).sum()]
        tasks = [self.loss_scale.scaled(task) for task in tasks]
        n_shared = len(self.shared.parameters)
        wanted = [*self.shared.parameters, *(self.own.parameters if self.own else ())]
        found = [
            torch.autograd.grad(
                task, wanted, retain_graph=task is not tasks[-1], allow_unused=True, materialize_grads=True
            )
            for task in tasks
        ]
        self.shared.values.grad, products = self.gradients_to_update([task[:n_shared] for task in found])
        if self.own:
            self.own.values.grad = self.own.write_gradients([task[n_shared:] for task in found]).sum(dim=0)
        skipped = self.loss_scale.step(self.optimizer)
        measured = {} if products is None or len(tasks) != 2 else _conflict(products)
        if skipped is None:
            return measured
        measured = {name: torch.where(skipped > 0, 0, value) for name, value in measured.items()}
        return measured | {"skipped_steps": skipped}

    def gradients_to_update(self, tasks: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor | None]:
        """One gradient a shared parameter for each task → the update, shape (P,): what surgery costs is spent here.

        With it, where the method weighs them, the tasks' inner products (T, T). Where losses are scaled, gradients and
        update are too, the inner products not: the optimiser undoes it, and weights (T,) are those of the true gradients.
        """
        gradients = self.shared.write_gradients(tasks)
        self.processes.add_up(gradients)
        if self.method.weigh is None:
            return gradients[0], None
        products = inner_products(gradients) / self.loss_scale.value().double().square()
        # In the first one's place, which nobody reads again: no room for another gradient.
        return combine(gradients, self.method.weigh(products), out=gradients[0]), products


def _conflict(products: Tensor) -> dict[str, Tensor]:
    """The two tasks' gradient norms and their cosine, from their inner products."""
    negative, positive = products.diagonal().sqrt()
    return {
        "gradient_norm_negative": negative,
        "gradient_norm_positive": positive,
        "gradient_cosine": products[0, 1] / (negative * positive).clamp(min=1e-30),
    }
