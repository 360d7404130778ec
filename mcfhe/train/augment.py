"""Random changes of training images that keep their class; every image of a batch draws its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

Augmentation = Callable[[Tensor, torch.Generator], Tensor]

MAX_ROTATION = math.radians(10)
MAX_SCALING = 0.1
MAX_SLIDE = 2.0  # pixels, of :func:`_affine`
MAX_GAIN = 1.25
MAX_OFFSET = 25.0  # pixel values


def _unchanged(images: Tensor, generator: torch.Generator) -> Tensor:
    return images


def _shift(images: Tensor, generator: torch.Generator, pixels: int, mirror: bool) -> Tensor:
    """Moved by up to ``pixels`` each way, edges filled with 0, and perhaps mirrored left to right."""
    count, _, height, width = images.shape
    down, right = torch.randint(0, 2 * pixels + 1, (2, count, 1, 1), generator=generator)
    rows = (down + torch.arange(height)[:, None]).expand(count, height, width)
    columns = right + torch.arange(width)
    if mirror:
        mirrored = torch.rand((count, 1, 1), generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(-1), columns)
    columns = columns.expand(count, height, width)
    padded = F.pad(images, [pixels] * 4)
    picked = padded.permute(0, 2, 3, 1)[torch.arange(count)[:, None, None], rows, columns]
    return picked.permute(0, 3, 1, 2)


def _affine(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotated, scaled and moved; bilinear, edges filled with 0."""
    count, _, height, width = images.shape
    angle, scale, x, y = (2 * torch.rand((4, count), generator=generator) - 1).unbind()
    angle, scale = angle * MAX_ROTATION, 1 + scale * MAX_SCALING
    cos, sin = scale * angle.cos(), scale * angle.sin()
    x, y = x * 2 * MAX_SLIDE / width, y * 2 * MAX_SLIDE / height
    grid = F.affine_grid(
        torch.stack([cos, -sin, x, sin, cos, y], dim=1).view(count, 2, 3), [count, 1, height, width], False
    )
    moved = F.grid_sample(images.float(), grid.to(images.device), mode="bilinear", align_corners=False)
    return moved.round().clamp(0, 255).to(torch.uint8)


def _exposed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Brighter or darker, with more or less contrast, as another apparatus would take it."""
    gain, offset = (2 * torch.rand((2, len(images), 1, 1, 1), generator=generator) - 1).to(images.device).unbind()
    changed = images.float() * (math.log(MAX_GAIN) * gain).exp() + MAX_OFFSET * offset
    return changed.round().clamp(0, 255).to(torch.uint8)


def _in_turn(images: Tensor, generator: torch.Generator, changes: tuple[Augmentation, ...]) -> Tensor:
    for change in changes:
        images = change(images, generator)
    return images


def _half(images: Tensor, generator: torch.Generator, change: Augmentation) -> Tensor:
    """Every image changed or as it was, with equal chance: interpolation blurs, and a network that has never seen a
    sharp image may take sharpness for a feature."""
    changed = change(images, generator)
    kept = torch.rand((len(images), 1, 1, 1), generator=generator) < 0.5
    return torch.where(kept.to(images.device), images, changed)


_affine_exposed = partial(_in_turn, changes=(_affine, _exposed))

#: From uint8 ``[b, C, H, W]`` and a generator on the CPU to the same shape and dtype, by the name ``augment=`` takes.
AUGMENTATIONS: Mapping[str, Augmentation] = MappingProxyType(
    {
        "none": _unchanged,
        "shift": partial(_shift, pixels=1, mirror=False),
        "shift-flip": partial(_shift, pixels=1, mirror=True),
        "shift2-flip": partial(_shift, pixels=2, mirror=True),
        "crop-flip": partial(_shift, pixels=4, mirror=True),
        "affine": _affine,
        "affine-exposure": _affine_exposed,
        "half-affine": partial(_half, change=_affine),
        "half-affine-exposure": partial(_half, change=_affine_exposed),
    }
)
