"""Float evaluation: normalised pixels, scores and accuracy of a network on a data set."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mcfhe.datasets import Dataset
from mcfhe.errors import ParameterError

BATCH = 64  # in float64 half the time of 1000: what a layer makes stays near the cache


def statistics(dataset: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of pixel / 255, rounded to 4 digits.

    From exact integer histograms, so that the order of the images and the machine do not matter.

    Raises:
        ParameterError: a channel without any contrast.
    """
    mean, std = [], []
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in range(dataset.images.shape[1]):
        counts = torch.bincount(dataset.images[:, channel].flatten().int(), minlength=256).double()
        centre = float((counts * values).sum() / counts.sum())
        spread = math.sqrt(float((counts * (values - centre) ** 2).sum() / counts.sum()))
        mean.append(round(centre, 4))
        std.append(round(spread, 4))
    if min(std) <= 0:
        raise ParameterError(f"{dataset.name}: channel {std.index(min(std))} is the same in all pixels; leave it out")
    return tuple(mean), tuple(std)


def normalise(
    images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """``(u / 255 - mean_c) / std_c`` of uint8 ``[b, C, H, W]``, as ``dtype``, one mean and std per channel."""
    shape = (1, -1, 1, 1)
    centre = torch.tensor(mean, dtype=dtype, device=images.device).view(shape)
    spread = torch.tensor(std, dtype=dtype, device=images.device).view(shape)
    return (images.to(dtype) / 255 - centre) / spread


def scores(
    model: nn.Module, images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float64
) -> Tensor:
    """Scores ``[n, labels]`` of uint8 ``[n, C, H, W]``, computed in ``dtype`` on a copy of the model in eval mode.

    In float64 by default: quadratic activations square the relative error of every layer before them.
    """
    model = copy.deepcopy(model).to(dtype).eval()
    device = next(model.parameters()).device
    with torch.inference_mode():
        batches = [
            model(normalise(images[start : start + BATCH].to(device), mean, std, dtype)).cpu()
            for start in range(0, len(images), BATCH)
        ]
    return torch.cat(batches)


def accuracy(
    model: nn.Module,
    dataset: Dataset,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float64,
) -> float:
    """Share of ``dataset`` whose highest score is its label, 0..1."""
    return float((scores(model, dataset.images, mean, std, dtype).argmax(1) == dataset.labels).double().mean())
