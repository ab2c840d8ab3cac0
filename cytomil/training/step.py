"""One update of the weights: losses, one gradient per task, their combination, and the optimiser's step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cytomil.encoders.architecture import Encoder
from cytomil.training.config import PretrainConfig
from cytomil.training.methods import Batch, Method
from cytomil.training.processes import Processes
from cytomil.training.surgery import combine, compute_gramian


class FlatWeights:
    """One buffer for all parameters, which become views of it, and another for one gradient per task.

    The optimiser updates ``values``, shape (P,). ``gradients``, shape (T, P), holds the last gradients written. Each
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
        """Copy each task's gradients, one per parameter, into a buffer of shape (T, P) that every step reuses."""
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


# The scale starts at 2^16 and is halved on every overflow. Below this limit, the scale is not the cause.
_MIN_SCALE = 2.0**-10


class LossScale:
    """PyTorch's gradient scaler for one optimiser. It is only active if ``precision`` is float16.

    Only `is_exhausted` waits for the device.
    """

    def __init__(self, device: torch.device, precision: torch.dtype) -> None:
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision is torch.float16)
        self._one = torch.ones((), device=device)

    @property
    def used(self) -> bool:
        """Whether losses are scaled."""
        return self._scaler.is_enabled()

    def value(self) -> Tensor:
        """A new scalar with the current factor on losses and gradients."""
        return self._scaler.scale(self._one)

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss times the current factor, so that float16 can represent its gradients."""
        return self._scaler.scale(loss)

    def step(self, optimizer: torch.optim.Optimizer) -> Tensor | None:
        """Take one step by scaled gradients, or skip it if one is not finite. Then update the scale.

        Returns:
            A scalar, 1 if the step was skipped and 0 otherwise; None if losses are not scaled.
        """
        if not self.used:
            optimizer.step()
            return None
        before = self.value()
        self._scaler.step(optimizer)
        self._scaler.update()
        return (self.value() < before).float()

    def is_exhausted(self) -> bool:
        """Whether gradients overflow at any scale. Waits for the device."""
        return self.used and self._scaler.get_scale() < _MIN_SCALE

    def state_dict(self) -> dict[str, Any]:
        """The scaler's state; empty if losses are not scaled."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``, or from the initial scale if ``state`` is empty."""
        if state:
            self._scaler.load_state_dict(state)


class Step:
    """Updates the weights of an encoder and of its method, batch by batch.

    A step never waits for the device. Its measurements are tensors on the device.
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
        # A method may freeze weights of the encoder and of its own.
        self.shared = FlatWeights(weight for weight in encoder.parameters() if weight.requires_grad)
        own = [weight for weight in method.parameters() if weight.requires_grad]
        self.own = FlatWeights(own) if own else None
        self.optimizer = torch.optim.SGD(
            [self.shared.values, *([self.own.values] if self.own else [])],
            lr=0.0,  # set in each step
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        if settings.momentum:
            # PyTorch allocates these buffers in the first step, and does not initialise them if it is skipped.
            for flat in self._flats():
                self.optimizer.state[flat.values]["momentum_buffer"] = torch.zeros_like(flat.values)
        self.loss_scale = LossScale(processes.device, precision)

    def __call__(self, batch: Batch, learning_rate: float) -> dict[str, Tensor | float]:
        """Take one step.

        Returns:
            Scalars to average over an epoch: ``loss_…`` per task, the chance level, measures of the gradients. If losses
            are scaled, ``skipped_steps`` is 1 for a step skipped because a gradient overflowed. Its measures of the
            gradients are 0.
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
        """Whether no weight is NaN or infinite. Waits for the device."""
        return all(bool(torch.isfinite(flat.values).all()) for flat in self._flats())

    def broadcast_weights(self) -> None:
        """Give every process the weights of the first one."""
        with torch.no_grad():
            self.processes.broadcast(*(flat.values for flat in self._flats()))

    def _flats(self) -> list[FlatWeights]:
        return [flat for flat in (self.shared, self.own) if flat]

    def _update(self, losses: list[Tensor]) -> dict[str, Tensor]:
        tasks = losses if self.method.weighting else [torch.stack(losses).sum()]
        tasks = [self.loss_scale.scaled(task) for task in tasks]
        n_shared = len(self.shared.parameters)
        wanted = [*self.shared.parameters, *(self.own.parameters if self.own else ())]
        found = [
            torch.autograd.grad(
                task, wanted, retain_graph=task is not tasks[-1], allow_unused=True, materialize_grads=True
            )
            for task in tasks
        ]
        self.shared.values.grad, gramian = self.combined_gradient([task[:n_shared] for task in found])
        if self.own:
            self.own.values.grad = self.own.write_gradients([task[n_shared:] for task in found]).sum(dim=0)
        skipped = self.loss_scale.step(self.optimizer)
        measured = {} if gramian is None or len(tasks) != 2 else _conflict(gramian)
        if skipped is None:
            return measured
        measured = {name: torch.where(skipped > 0, 0, value) for name, value in measured.items()}
        return measured | {"skipped_steps": skipped}

    def combined_gradient(self, tasks: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor | None]:
        """Combine the tasks' gradients, one tensor per shared parameter each, to one by the method's surgery.

        Returns:
            The update, shape (P,), and the gramian of the tasks' gradients (T, T); None if the method has no weighting.
            If losses are scaled, so is the update, and the optimiser undoes it. The gramian is that of the true gradients.
        """
        gradients = self.shared.write_gradients(tasks)
        self.processes.all_reduce(gradients)
        if self.method.weighting is None:
            return gradients[0], None
        gramian = compute_gramian(gradients) / self.loss_scale.value().double().square()
        # Overwrites the first gradient, which is not read again, to save memory.
        return combine(gradients, self.method.weighting(gramian), out=gradients[0]), gramian


def _conflict(gramian: Tensor) -> dict[str, Tensor]:
    """The norms of the two tasks' gradients and their cosine, from the gramian."""
    negative, positive = gramian.diagonal().sqrt()
    return {
        "gradient_norm_negative": negative,
        "gradient_norm_positive": positive,
        "gradient_cosine": gramian[0, 1] / (negative * positive).clamp(min=1e-30),
    }
