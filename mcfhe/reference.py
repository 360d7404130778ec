"""The oracle: every residue op on plain Python integers, one value at a time, as slowly and as plainly as possible.

Tensors are int64 as in :mod:`mcfhe.ops`; arithmetic is on Python ints, so nothing can overflow. Tests compare the
kernels with this by equality.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def _horner(value: int, coefficients: Sequence[int]) -> int:
    return sum(c * value**i for i, c in enumerate(coefficients))


def _row(table: Tensor, limb: int, channel: int) -> list[int]:
    return table[limb, channel if table.shape[1] > 1 else 0].tolist()


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    moduli: Tensor,
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    poly: Tensor | None = None,
) -> Tensor:
    """See :func:`mcfhe.ops.conv2d`."""
    limbs, _, height, width, stream = x.shape
    outs, group_in, kernel_h, kernel_w = weight.shape
    out_h = (height + 2 * padding[0] - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1
    out_w = (width + 2 * padding[1] - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1
    y = torch.empty(limbs, outs, out_h, out_w, stream, dtype=torch.int64)
    values, weights, basis = x.tolist(), weight.tolist(), moduli.tolist()
    taps = list(itertools.product(range(group_in), range(kernel_h), range(kernel_w)))
    for limb, out, row, column, s in itertools.product(
        range(limbs), range(outs), range(out_h), range(out_w), range(stream)
    ):
        total = 0 if bias is None else int(bias[limb, out])
        first = out // (outs // groups) * group_in
        for c, i, j in taps:
            h = row * stride[0] + i * dilation[0] - padding[0]
            w = column * stride[1] + j * dilation[1] - padding[1]
            if 0 <= h < height and 0 <= w < width:
                total += weights[out][c][i][j] * values[limb][first + c][h][w][s]
        if poly is not None:
            total = _horner(total, _row(poly, limb, out))
        y[limb, out, row, column, s] = total % basis[limb]
    return y


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, moduli: Tensor, *, poly: Tensor | None = None) -> Tensor:
    """See :func:`mcfhe.ops.linear`."""
    image = x.reshape(x.shape[0], x.shape[1], 1, 1, x.shape[2])
    y = conv2d(image, weight.reshape(*weight.shape, 1, 1), bias, moduli, poly=poly)
    return y.reshape(x.shape[0], weight.shape[0], x.shape[2])


def sum_pool2d(
    x: Tensor,
    moduli: Tensor,
    *,
    kernel: Sequence[int],
    stride: Sequence[int] | None = None,
    padding: Sequence[int] = (0, 0),
    factor: Tensor | None = None,
) -> Tensor:
    """See :func:`mcfhe.ops.sum_pool2d`."""
    stride = kernel if stride is None else stride
    limbs, channels, height, width, stream = x.shape
    out_h = (height + 2 * padding[0] - kernel[0]) // stride[0] + 1
    out_w = (width + 2 * padding[1] - kernel[1]) // stride[1] + 1
    y = torch.empty(limbs, channels, out_h, out_w, stream, dtype=torch.int64)
    values, basis = x.tolist(), moduli.tolist()
    for limb, c, row, column, s in itertools.product(
        range(limbs), range(channels), range(out_h), range(out_w), range(stream)
    ):
        total = 0
        for i, j in itertools.product(range(kernel[0]), range(kernel[1])):
            h, w = row * stride[0] + i - padding[0], column * stride[1] + j - padding[1]
            if 0 <= h < height and 0 <= w < width:
                total += values[limb][c][h][w][s]
        y[limb, c, row, column, s] = total * (1 if factor is None else int(factor[limb])) % basis[limb]
    return y


def _pointwise(x: Tensor, moduli: Tensor, f: Callable[[int, int, int, int], int]) -> Tensor:
    """f(limb, channel, flat index, value) for every entry of x [L, C, ..., S] or [L, S], modulo the limb."""
    channels = 1 if x.dim() == 2 else x.shape[1]
    flat = x.reshape(x.shape[0], channels, -1)
    y = torch.empty_like(flat)
    for limb, c, i in itertools.product(range(flat.shape[0]), range(channels), range(flat.shape[2])):
        y[limb, c, i] = f(limb, c, i, int(flat[limb, c, i])) % int(moduli[limb])
    return y.reshape(x.shape)


def square(x: Tensor, moduli: Tensor) -> Tensor:
    """See :func:`mcfhe.ops.square`."""
    return _pointwise(x, moduli, lambda _l, _c, _i, value: value * value)


def poly(x: Tensor, coefficients: Tensor, moduli: Tensor) -> Tensor:
    """See :func:`mcfhe.ops.poly`."""
    return _pointwise(x, moduli, lambda limb, c, _i, value: _horner(value, _row(coefficients, limb, c)))


def align_add(
    x: Tensor, y: Tensor, moduli: Tensor, *, x_factor: Tensor | None = None, y_factor: Tensor | None = None
) -> Tensor:
    """See :func:`mcfhe.ops.align_add`."""
    other = y.reshape(x.shape[0], 1 if x.dim() == 2 else x.shape[1], -1)

    def one(limb: int, c: int, i: int, value: int) -> int:
        fx = 1 if x_factor is None else int(x_factor[limb])
        fy = 1 if y_factor is None else int(y_factor[limb])
        return fx * value + fy * int(other[limb, c, i])

    return _pointwise(x, moduli, one)


def add_const(x: Tensor, constant: Tensor, moduli: Tensor) -> Tensor:
    """See :func:`mcfhe.ops.add_const`."""
    return _pointwise(x, moduli, lambda limb, c, _i, value: value + _row(constant.unsqueeze(-1), limb, c)[0])
