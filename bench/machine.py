"""The machine that ran a bench, without its name: cores, memory, versions, and the speed of matrix products."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from cytomil.encoders.architecture import Encoder
    from cytomil.layer import Layer

PACKAGES = (
    "cytomil",
    "torch",
    "torchvision",
    "numpy",
    "h5py",
    "pillow",
    "openvino",
    "nncf",
    "ncnn",
    "ray",
    "simplejpeg",
    "opencv-python-headless",
)
# CPU features that affect the speed of matrix products.
FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm")


def describe() -> dict[str, Any]:
    """Cores, CPU features, memory in GB, versions and load of the machine, without its name or any path."""
    import torch

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cpu_features": cpu_features(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": round(psutil.getloadavg()[0], 1),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Those of `FEATURES` that the processor has; empty if the system does not report them."""
    if not cpuinfo.is_file():
        return []
    lines = (line for line in cpuinfo.read_text().splitlines() if line.startswith(("flags", "Features")))
    flags = set(next(lines, ":").partition(":")[2].split())
    return [feature for feature in FEATURES if feature in flags]


def matmul_work(n: int = 2048, repeats: int = 3) -> tuple[Callable[[], object], float]:
    """A reference workload, to be timed with others: float32 products of n×n matrices, and their GFLOP."""
    import torch

    a, b = torch.randn(n, n), torch.randn(n, n)
    return lambda: [a @ b for _ in range(repeats)], repeats * 2 * n**3 / 1e9


def layer_gflop(encoder: Encoder, layer: Layer, image_size: int) -> float:
    """GFLOP of the forward pass of one cell up to ``layer``. A multiplication and an addition count as two."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from cytomil.encoders.stages import Layers

    network = Layers(encoder, [layer]).eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 3, image_size, image_size))
    return counter.get_total_flops() / 1e9


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
