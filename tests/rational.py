"""A float graph on fractions: what it computes, without any rounding."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np

from mcfhe.graph.nodes import Add, AvgPool2d, Concat, Conv2d, Graph, Linear, Poly

_fractions = np.vectorize(Fraction, otypes=[object])


def evaluate_rational(
    graph: Graph, image: np.ndarray, pool_weight: Callable[[int], Fraction] = lambda divisor: Fraction(1, divisor)
) -> list[Fraction]:
    """Output values, row major, of one image ``[C, H, W]`` of ints, floats or fractions.

    ``pool_weight(divisor)`` is what a pool's window sum is multiplied by; the letter rounds it to the scale.
    """
    values = [_fractions(image)]
    for node, shape in zip(graph.nodes[1:], graph.shapes[1:], strict=True):
        x = values[node.inputs[0]]
        y = np.empty(shape, object)
        if isinstance(node, Conv2d):
            weight, per_group = _fractions(node.weight), node.weight.shape[1]
            padded = np.pad(x, [(0, 0), *((p, p) for p in node.padding)], constant_values=Fraction(0))
            for o, r, c in np.ndindex(*shape):
                first = o // (len(weight) // node.groups) * per_group
                total = Fraction(0) if node.bias is None else Fraction(node.bias[o])
                for i, j in np.ndindex(*weight.shape[2:]):
                    at = (r * node.stride[0] + i * node.dilation[0], c * node.stride[1] + j * node.dilation[1])
                    total += (weight[o, :, i, j] * padded[first : first + per_group, at[0], at[1]]).sum()
                y[o, r, c] = total
        elif isinstance(node, AvgPool2d):
            padded = np.pad(x, [(0, 0), *((p, p) for p in node.padding)], constant_values=Fraction(0))
            for o, r, c in np.ndindex(*shape):
                top, left = r * node.stride[0], c * node.stride[1]
                window = padded[o, top : top + node.kernel[0], left : left + node.kernel[1]]
                y[o, r, c] = window.sum() * pool_weight(node.divisor)
        elif isinstance(node, Linear):
            y = _fractions(node.weight) @ x + (0 if node.bias is None else _fractions(node.bias))
        elif isinstance(node, Poly):
            rows = _fractions(node.coefficients).reshape(-1, *(1,) * (x.ndim - 1), node.coefficients.shape[1])
            y = sum(rows[..., i] * x**i for i in range(node.coefficients.shape[1]))
        elif isinstance(node, Add):
            y = x + values[node.inputs[1]]
        elif isinstance(node, Concat):
            y = np.concatenate([values[i] for i in node.inputs])
        else:
            y = x.reshape(-1)
        values.append(np.broadcast_to(y, shape))
    return list(values[-1].reshape(-1))
