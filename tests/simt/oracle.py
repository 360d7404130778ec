"""Every residue op on Python integers, vectorised over numpy object arrays: the oracle of the SIMT tests.

Arrays are laid out as the ops' tensors, `[L, C, H, W, S]`, and hold Python ints, so nothing can overflow.
Independent of `mcfhe.reference` and of torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[Any]  # dtype object: Python ints
Pair = tuple[int, int]


def ints(values: Any) -> Ints:
    """An object array of Python ints."""
    return np.array(np.asarray(values).tolist(), dtype=object).reshape(np.asarray(values).shape)


def out_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def reduce(values: Ints, moduli: Sequence[int]) -> Ints:
    """Each limb modulo its modulus."""
    result = np.empty_like(values)
    for limb, b in enumerate(moduli):
        result[limb] = values[limb] % b
    return result


def polynomial(values: Ints, coefficients: Ints) -> Ints:
    """sum_i coefficients[l, c, i] * x**i for values [L, C, ...] and coefficients [L, 1 or C, D + 1]."""
    rows = np.broadcast_to(coefficients, (*values.shape[:2], coefficients.shape[2]))
    rows = rows.reshape(*values.shape[:2], *([1] * (values.ndim - 2)), coefficients.shape[2])
    total = np.zeros(values.shape, dtype=object)
    for i in range(coefficients.shape[2]):
        total = total + rows[..., i] * values**i
    return total


def conv2d(
    x: Ints,
    weight: Ints,
    moduli: Sequence[int],
    *,
    bias: Ints | None = None,
    poly: Ints | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Ints:
    limbs, _, height, width, stream = x.shape
    outs, group_in, kernel_h, kernel_w = weight.shape
    out_h = out_size(height, kernel_h, stride[0], padding[0], dilation[0])
    out_w = out_size(width, kernel_w, stride[1], padding[1], dilation[1])
    padded = np.zeros((*x.shape[:2], height + 2 * padding[0], width + 2 * padding[1], stream), dtype=object)
    padded[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width] = x
    y = np.zeros((limbs, outs, out_h, out_w, stream), dtype=object)
    for o in range(outs):
        first = o // (outs // groups) * group_in
        for c in range(group_in):
            for i in range(kernel_h):
                for j in range(kernel_w):
                    rows = slice(i * dilation[0], i * dilation[0] + (out_h - 1) * stride[0] + 1, stride[0])
                    columns = slice(j * dilation[1], j * dilation[1] + (out_w - 1) * stride[1] + 1, stride[1])
                    y[:, o] += weight[o, c, i, j] * padded[:, first + c, rows, columns]
    if bias is not None:
        y = y + bias[:, :, None, None, None]
    return reduce(y if poly is None else polynomial(y, poly), moduli)


def linear(x: Ints, weight: Ints, moduli: Sequence[int], *, bias: Ints | None = None, poly: Ints | None = None) -> Ints:
    image = x[:, :, None, None, :]
    return conv2d(image, weight[:, :, None, None], moduli, bias=bias, poly=poly)[:, :, 0, 0, :]


def sum_pool2d(
    x: Ints, moduli: Sequence[int], *, kernel: Pair, stride: Pair, padding: Pair, factor: Ints | None = None
) -> Ints:
    channels = x.shape[1]
    ones = ints(np.ones((channels, 1, *kernel), dtype=np.int64))
    sums = conv2d(x, ones, moduli, stride=stride, padding=padding, groups=channels)
    return sums if factor is None else reduce(sums * factor[:, None, None, None, None], moduli)


def align_add(x: Ints, y: Ints, moduli: Sequence[int], x_factor: Ints | None, y_factor: Ints | None) -> Ints:
    shape = (x.shape[0], *([1] * (x.ndim - 1)))
    fx = 1 if x_factor is None else x_factor.reshape(shape)
    fy = 1 if y_factor is None else y_factor.reshape(shape)
    return reduce(fx * x + fy * y, moduli)


def add_const(x: Ints, constant: Ints, moduli: Sequence[int]) -> Ints:
    return reduce(x + constant.reshape(*constant.shape, *([1] * (x.ndim - 2))), moduli)


def weight_bounds(weight: Ints) -> tuple[int, int]:
    """(max |q|, max over outputs of sum |q|)."""
    rows = [[abs(q) for q in row] for row in weight.reshape(weight.shape[0], -1).tolist()]
    return max(map(max, rows)), max(map(sum, rows))
