"""The encoder as training runs it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cytomil.encoders.architecture import Architecture, Encoder
from cytomil.errors import SettingsError
from cytomil.pretrain.processes import Processes
from cytomil.pretrain.small_maps import replace_convolutions
from cytomil.settings import PretrainSettings


class TrainingEncoder(Encoder):
    """In training mode each process runs its share of the rows, in ``precision``, and returns the whole in float32.

    In evaluation mode it is the plain encoder. Weights have the same names as the plain encoder's. Raises
    `SettingsError` for an architecture whose batch norms several processes cannot share.
    """

    def __init__(self, architecture: Architecture, precision: torch.dtype, processes: Processes) -> None:
        super().__init__(architecture)
        if processes.count > 1:
            _require_plain_batch_norms(self)
        self._precision, self._processes = precision, processes
        processes.share_statistics(self)
        replace_convolutions(self)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The whole batch's pixels (N, 3, S, S) in 0 to 1 → its h and z."""
        if not self.training:
            return super().forward(pixels)
        own = self._processes.share(pixels)
        reduced = self._precision is not torch.float32
        with torch.autocast(pixels.device.type, dtype=self._precision, enabled=reduced):
            h, z = super().forward(own)
        if reduced:
            h, z = h.float(), z.float()
        return self._processes.gather(h, len(pixels)), self._processes.gather(z, len(pixels))


def _require_plain_batch_norms(encoder: Encoder) -> None:
    for module in encoder.modules():
        if isinstance(module, _BatchNorm) and type(module) not in (nn.BatchNorm1d, nn.BatchNorm2d):
            # Putting another kind in its place would drop what else it does, such as the activation of timm's.
            raise SettingsError(
                f"{encoder.architecture.name} has batch norms of its own kind ({type(module).__name__}), whose statistics "
                "several processes cannot share. Train it in one process, or use another --arch."
            )


def pick_precision(settings: PretrainSettings, device: torch.device) -> torch.dtype:
    """What the network computes in. ``auto`` is bfloat16 where the GPU or the processor has it, float32 elsewhere.

    Raises:
        SettingsError: bfloat16 was asked for on a GPU that has none.
    """
    if settings.precision == "float32" or (settings.precision == "auto" and not _has_bfloat16(device)):
        return torch.float32
    if device.type == "cuda" and not _has_bfloat16(device):
        raise SettingsError("this GPU does not compute in bfloat16. Use --precision float32.")
    return torch.bfloat16


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Elsewhere a CPU emulates it, slower than float32. PyTorch has no public name for the question.
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
