"""The two small networks in the form every contender of ``benchmarks.peers`` computes, and what it measures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import mcfhe
from benchmarks.shipped import Shipped, shipped, test_set
from mcfhe.activations import PolyActivation
from mcfhe.scoring import normalise

NAMES = ("cryptonets-mnist", "tenseal_net-mnist")


@dataclass(frozen=True)
class SquareNet:
    """Convolution, square, linear, square, linear: ``matrix2 (matrix1 (conv(x) + bias)^2 + ...)^2 + ...``.

    Attributes:
        item: the shipped model, with whatever quadratic its training has found.
        kernels: float64 ``[channels, k, k]``; the convolution pads by ``padding`` zeros and moves by ``stride``.
        biases: float64 ``[channels]``.
        matrix1, bias1: float64 ``[hidden, channels * windows]`` and ``[hidden]``, inputs channel by channel.
        matrix2, bias2: float64 ``[labels, hidden]`` and ``[labels]``.
        pixels: uint8 ``[n, 1, 28, 28]``, with their ``labels``.
    """

    item: Shipped
    kernels: np.ndarray
    biases: np.ndarray
    stride: int
    padding: int
    matrix1: np.ndarray
    bias1: np.ndarray
    matrix2: np.ndarray
    bias2: np.ndarray
    pixels: Tensor
    labels: Tensor

    @property
    def images(self) -> np.ndarray:
        """What the convolution sees: normalised and padded, float64 ``[n, height, width]``."""
        x = normalise(self.pixels, self.item.card.mean, self.item.card.std, torch.float64)[:, 0]
        return np.pad(x.numpy(), ((0, 0), (self.padding, self.padding), (self.padding, self.padding)))

    def windows(self, images: np.ndarray) -> np.ndarray:
        """``[n, windows, k * k]``: the pixels under the kernel at each of its places."""
        kernel = self.kernels.shape[1]
        views = np.lib.stride_tricks.sliding_window_view(images, (kernel, kernel), axis=(1, 2))
        views = views[:, :: self.stride, :: self.stride]
        return views.reshape(len(images), -1, kernel * kernel)

    def scores(self, images: np.ndarray) -> np.ndarray:
        """In float64, ``[n, labels]``."""
        maps = self.windows(images) @ self.kernels.reshape(len(self.kernels), -1).T + self.biases
        hidden = maps.transpose(0, 2, 1).reshape(len(images), -1) ** 2 @ self.matrix1.T + self.bias1
        out: np.ndarray = hidden**2 @ self.matrix2.T + self.bias2
        return out


@dataclass(frozen=True)
class Measured:
    """What a contender found. Times in seconds; ``latency`` is of the server's work on one request of ``batch``."""

    batch: int
    images: int
    latency: float
    encrypt: float
    decrypt: float
    accuracy: float
    agreement: float  # share of labels equal to those of SquareNet.scores
    bytes_up: int  # of one request
    bytes_down: int
    key_bytes: int  # that the server keeps for evaluation; 0 where every request carries its own


def load(name: str, count: int) -> SquareNet:
    """The shipped network ``name`` and the first ``count`` test images of its data."""
    item = next(found for found in shipped() if found.name == name)
    images = test_set(item.card)
    return squares(item, images.images[:count], images.labels[:count])


def squares(item: Shipped, pixels: Tensor, labels: Tensor) -> SquareNet:
    """c0 + c1 x + c2 x^2 = c2 (x + h)^2 + d, h = c1 / (2 c2), d = c0 - c1^2 / (4 c2): h joins the bias before, c2 and d
    the layer behind, which has no padding here."""
    layers = dict(item.model.named_children())
    conv, fc1, fc2 = layers["conv"], layers["fc1"], layers["fc2"]
    assert isinstance(conv, nn.Conv2d)
    shift1, gain1, rest1 = _completed(layers["act1"])
    shift2, gain2, rest2 = _completed(layers["act2"])
    matrix1, matrix2 = _array(fc1.weight), _array(fc2.weight)
    return SquareNet(
        item=item,
        kernels=_array(conv.weight)[:, 0],
        biases=_array(conv.bias) + shift1,
        stride=conv.stride[0],
        padding=int(conv.padding[0]),
        matrix1=matrix1 * gain1,
        bias1=_array(fc1.bias) + matrix1.sum(1) * rest1 + shift2,
        matrix2=matrix2 * gain2,
        bias2=_array(fc2.bias) + matrix2.sum(1) * rest2,
        pixels=pixels,
        labels=labels,
    )


def _completed(activation: nn.Module) -> tuple[float, float, float]:
    """(h, c2, d) of a shared quadratic."""
    assert isinstance(activation, PolyActivation)
    c0, c1, c2 = activation.coefficients.double().tolist()
    return c1 / (2 * c2), c2, c0 - c1 * c1 / (4 * c2)


def _array(values: Tensor | nn.Module) -> np.ndarray:
    assert isinstance(values, Tensor)
    return values.detach().double().numpy()


def compiled(net: SquareNet) -> mcfhe.Program:
    card = net.item.card
    return mcfhe.compile(net.item.model, card.input_shape, card.mean, card.std, labels=card.labels, passes="default")
