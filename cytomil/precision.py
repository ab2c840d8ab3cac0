"""The number format in which a device multiplies matrices, and which short formats it supports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from cytomil.errors import SettingsError

if TYPE_CHECKING:
    import torch

TrainingPrecision: TypeAlias = Literal["auto", "float32", "bf16", "float16"]


def pick_precision(wanted: TrainingPrecision, device: torch.device) -> torch.dtype:
    """What matrix products are computed in.

    ``auto`` is bfloat16 where the GPU or the processor supports it, float16 on other GPUs, float32 on other processors.

    Raises:
        SettingsError: bfloat16 was requested on a GPU that does not support it.
    """
    import torch

    if wanted == "auto":
        if _has_bfloat16(device):
            return torch.bfloat16
        return torch.float16 if device.type == "cuda" else torch.float32
    if wanted == "bf16" and device.type == "cuda" and not _has_bfloat16(device):
        raise SettingsError("this GPU does not compute in bfloat16. Use --precision float16 or float32.")
    return {"float32": torch.float32, "bf16": torch.bfloat16, "float16": torch.float16}[wanted]


def _has_bfloat16(device: torch.device) -> bool:
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Other CPUs emulate bfloat16, which is slower than float32. PyTorch has no public function to ask.
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
