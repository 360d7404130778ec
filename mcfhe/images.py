"""What counts as images, for whoever encrypts or evaluates them. Needs nothing of the client."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mcfhe.errors import ImageError


def check_images(images: object, input_shape: Sequence[int]) -> np.ndarray:
    """``images`` as a uint8 array [batch, C, H, W]; ImageError names what is expected and what was given."""
    expected = f"uint8 [batch, {', '.join(str(v) for v in input_shape)}]"
    if not isinstance(images, np.ndarray | torch.Tensor):
        raise ImageError(f"images: {expected} expected, as a tensor or array, not {type(images).__name__}")
    if images.dtype not in (np.dtype(np.uint8), torch.uint8) or tuple(images.shape[1:]) != tuple(input_shape):
        raise ImageError(f"images: {expected} expected, got {images.dtype} {list(images.shape)}")
    if len(images) == 0:
        raise ImageError(f"images: {expected} expected with batch >= 1, got an empty batch")
    return images.detach().cpu().numpy() if isinstance(images, torch.Tensor) else images
