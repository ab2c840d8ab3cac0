"""Views: random crops, orientations and stains of cells, made for a whole batch at once.

torchvision's v2 transforms draw one set of parameters for a whole batch, but SimCLR needs one per instance. Here a view
is one affine map per instance, and one 3×3 colour matrix and offset per instance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as v2

_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class ViewMaker:
    """Draws SimCLR's views (arXiv 2002.05709, appendix A). Cells have no orientation, so views also rotate them.

    Args:
        crop_scale: min fraction of the area that a crop keeps.
        jitter: strength of the colour changes: ±0.8 of it for brightness, contrast and saturation, ±0.2 for hue.
        rotates: whether cells are rotated by multiples of 90°. They are mirrored in any case.
        grayscale_probability: probability that a view is grey.
        blur_probability: probability that a view is blurred.
    """

    crop_scale: float
    jitter: float
    rotates: bool = True
    grayscale_probability: float = 0.2
    blur_probability: float = 0.5

    def __call__(self, cells: Tensor, generator: torch.Generator) -> Tensor:
        """Cells (N, 3, S, S) in 0 to 1 → one view of each, of the same shape and range, channels-last."""
        views = self._crop(cells, generator)
        views = self._stain(views, generator)
        return self._blur(views, generator).contiguous(memory_format=torch.channels_last)

    def _crop(self, cells: Tensor, generator: torch.Generator) -> Tensor:
        n = len(cells)
        area = _uniform(n, self.crop_scale, 1.0, generator)
        ratio = torch.exp(_uniform(n, math.log(3 / 4), math.log(4 / 3), generator))
        width = (area * ratio).sqrt().clamp(max=1)
        height = (area / ratio).sqrt().clamp(max=1)
        # Centre of the crop in coordinates from −1 to 1, chosen so that the crop stays inside.
        x = (1 - width) * _uniform(n, -1, 1, generator)
        y = (1 - height) * _uniform(n, -1, 1, generator)
        quarter = torch.randint(0, 4, (n,), generator=generator) * (math.pi / 2 * self.rotates)
        mirror = torch.randint(0, 2, (n,), generator=generator) * 2.0 - 1
        cos, sin = quarter.cos(), quarter.sin()
        theta = torch.stack(
            [
                torch.stack([width * cos * mirror, -width * sin, x], dim=1),
                torch.stack([height * sin * mirror, height * cos, y], dim=1),
            ],
            dim=1,
        )
        grid = F.affine_grid(theta.to(cells), list(cells.shape), align_corners=False)
        return F.grid_sample(cells, grid, mode="bilinear", padding_mode="reflection", align_corners=False)

    def _stain(self, views: Tensor, generator: torch.Generator) -> Tensor:
        n = len(views)
        strong = 0.8 * self.jitter
        brightness, contrast, saturation = (
            _uniform(n, max(0.0, 1 - strong), 1 + strong, generator).view(n, 1, 1) for _ in range(3)
        )
        angle = _uniform(n, -0.2 * self.jitter, 0.2 * self.jitter, generator) * (2 * math.pi)
        jittered = (torch.rand(n, generator=generator) < 0.8).view(n, 1, 1)
        to_gray = (torch.rand(n, generator=generator) < self.grayscale_probability).view(n, 1, 1)

        identity = torch.eye(3).expand(n, 3, 3)
        gray = torch.tensor(_LUMA).expand(3, 3)
        change = brightness * _hue_rotation(angle) @ (saturation * identity + (1 - saturation) * gray)
        change = torch.where(jittered, change, identity)
        change = torch.where(to_gray, gray @ change, change)
        contrast = torch.where(jittered, contrast, torch.ones(()))

        change, contrast, luma = change.to(views), contrast.to(views), torch.tensor(_LUMA).to(views)
        mean_gray = torch.einsum("nchw,c->n", views, luma) / views[0, 0].numel()
        offset = (1 - contrast) * mean_gray.view(n, 1, 1)
        changed = torch.einsum("nij,njhw->nihw", change * contrast, views) + (
            change @ offset.expand(n, 3, 1)
        ).unsqueeze(3)
        return changed.clamp(0, 1)

    def _blur(self, views: Tensor, generator: torch.Generator) -> Tensor:
        sigma = float(_uniform(1, 0.1, 1.0, generator))
        size = views.shape[-1] // 10 // 2 * 2 + 1
        blurred = torch.nonzero(torch.rand(len(views), generator=generator) < self.blur_probability).flatten()
        if size < 3 or len(blurred) == 0:
            return views
        blurred = blurred.to(views.device)
        kernel_sigma = sigma * max(1.0, views.shape[-1] / 64)
        views[blurred] = v2.gaussian_blur(views[blurred], [size, size], [kernel_sigma, kernel_sigma])
        return views


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator) * (high - low) + low


def _hue_rotation(angle: Tensor) -> Tensor:
    """Rotation of the chroma plane in YIQ, as RGB matrices: shape (N,) → (N, 3, 3)."""
    to_yiq = torch.tensor([_LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)])
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).view(-1, 3, 3)
    return torch.linalg.inv(to_yiq) @ turn @ to_yiq
