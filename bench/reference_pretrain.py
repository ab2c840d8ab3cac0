"""The reference for `bench.pretrain`: like the released code, but written from its description.

Each view decodes its JPEG again, and applies torchvision's transforms to Pillow images one by one. Each step runs four
forward passes (negative and positive cells, first and second views) in float32, channels first. Gradient surgery works on a
list with one gradient per parameter.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from cytomil.encoders.architecture import Encoder
from cytomil.training.losses import nt_xent_loss, similarity_loss


class ReferenceLoop:
    """SLAM-AGS with cytomil's model and losses."""

    def __init__(self, encoder: Encoder, image_size: int, crop_scale: float, jitter: float, scale: float) -> None:
        self.encoder = encoder.train()
        self.optimizer = torch.optim.SGD(encoder.parameters(), 0.001, momentum=0.9, weight_decay=1e-4)
        self.scale = scale
        blur = image_size // 10 // 2 * 2 + 1
        self.view = v2.Compose(
            [
                v2.RandomResizedCrop(image_size, scale=(crop_scale, 1.0)),
                v2.RandomHorizontalFlip(),
                v2.RandomVerticalFlip(),
                v2.RandomApply([v2.ColorJitter(0.8 * jitter, 0.8 * jitter, 0.8 * jitter, 0.2 * jitter)], p=0.8),
                v2.RandomGrayscale(0.2),
                *([v2.RandomApply([v2.GaussianBlur(blur, (0.1, 2.0))], p=0.5)] if blur >= 3 else []),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )

    def step(self, negatives: Sequence[bytes], positives: Sequence[bytes]) -> None:
        """Update the weights once, from the JPEGs of cells."""
        z_n, other_z_n, z_p, other_z_p = (
            self.encoder(torch.stack([self._load(image) for image in side]))[1]
            for side in (negatives, negatives, positives, positives)
        )
        tasks = (
            self.scale * similarity_loss(torch.cat([z_n, other_z_n]), 0.2),
            nt_xent_loss(z_p, other_z_p, 0.2),
        )
        weights = list(self.encoder.parameters())
        gradients = [list(torch.autograd.grad(task, weights, retain_graph=True)) for task in tasks]
        for weight, gradient in zip(weights, surgery(*gradients), strict=True):
            weight.grad = gradient
        self.optimizer.step()

    def _load(self, image: bytes) -> Tensor:
        view: Tensor = self.view(Image.open(io.BytesIO(image)).convert("RGB"))
        return view


def surgery(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    """Adaptive gradient surgery of two tasks. Input and output are lists with one tensor per parameter."""
    flat_a, flat_b = (nn.utils.parameters_to_vector(gradients) for gradients in (a, b))
    inner = flat_a @ flat_b
    plain = flat_a + flat_b
    if inner < 0:
        flat_a, flat_b = flat_a - inner / (flat_b @ flat_b) * flat_b, flat_b - inner / (flat_a @ flat_a) * flat_a
    total = flat_a + flat_b
    if total.norm() < plain.norm():
        total = total * (plain.norm() / total.norm())
    out, start = [], 0
    for gradient in a:
        out.append(total[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()
    return out
