"""Merge two linear layers, or two convolutions, that follow each other directly."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from mcfhe.graph.nodes import Conv2d, Graph, Linear, Node
from mcfhe.graph.passes.registry import graph_pass
from mcfhe.graph.passes.rewrite import Rewriter, added_bias


@graph_pass("merge_linear_layers", default=True)
def merge_linear_layers(graph: Graph) -> Graph:
    """W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2), where that takes no more multiplications than before.

    It saves one scale, and limbs with it. The second layer takes the product, nobody reads the first any more. Only
    the second layer may have read the first. Convolutions without groups: the second does not pad, since its padding
    stands for zeros that the first does not give; or the first is 1 x 1 with stride 1 and the second pads no bias.
    """
    rewriter = Rewriter(graph)
    for index, node in enumerate(rewriter.nodes):
        if not isinstance(node, Conv2d | Linear):
            continue
        source = node.inputs[0]
        before = rewriter.nodes[source]
        if not rewriter.is_read_once(source):
            continue
        merged = _merged(before, node)
        if merged is None:
            continue
        cost = _products(before, rewriter.shapes[source]) + _products(node, rewriter.shapes[index])
        if _products(merged, rewriter.shapes[index]) > cost:
            continue
        rewriter.nodes[index] = replace(merged, inputs=before.inputs)
    return rewriter.graph()


def _products(node: Node, shape: tuple[int, ...]) -> int:
    """Multiplications of a layer with this output shape."""
    return math.prod(shape) * math.prod(node.weight.shape[1:]) if isinstance(node, Conv2d | Linear) else 0


def _merged(first: Node, second: Node) -> Conv2d | Linear | None:
    if isinstance(first, Linear) and isinstance(second, Linear):
        bias = second.bias if first.bias is None else added_bias(second.bias, second.weight @ first.bias)
        return replace(second, weight=second.weight @ first.weight, bias=bias)
    if isinstance(first, Conv2d) and isinstance(second, Conv2d) and first.groups == second.groups == 1:
        return _merged_convolutions(first, second)
    return None


def _merged_convolutions(first: Conv2d, second: Conv2d) -> Conv2d | None:
    bias = second.bias
    if first.bias is not None:
        if any(second.padding) and first.bias.any():
            return None
        bias = added_bias(bias, second.weight.sum(axis=(2, 3)) @ first.bias)
    if first.weight.shape[2:] == (1, 1) and first.stride == (1, 1) and first.padding == (0, 0):
        weight = np.einsum("omij,mc->ocij", second.weight, first.weight[:, :, 0, 0])
        return replace(second, weight=weight, bias=bias)
    if second.padding == (0, 0) and (first.dilation == (1, 1) or second.weight.shape[2:] == (1, 1)):
        stride = (first.stride[0] * second.stride[0], first.stride[1] * second.stride[1])
        return replace(first, name=second.name, weight=_composed(first, second), bias=bias, stride=stride)
    return None


def _composed(first: Conv2d, second: Conv2d) -> np.ndarray:
    """Kernel of the second convolution on the first, [O, C, h, w]: tap j of the second reads the first's window that
    starts at j * dilation * stride of the first, so w[u] = sum over j of w2[j] w1[u - j * dilation * stride]."""
    steps = [d * s for d, s in zip(second.dilation, first.stride, strict=True)]
    kernel, outer = first.weight.shape[2:], second.weight.shape[2:]
    size = [k + step * (n - 1) for k, step, n in zip(kernel, steps, outer, strict=True)]
    weight = np.zeros((len(second.weight), first.weight.shape[1], *size))
    for row, column in np.ndindex(*outer):
        part = np.einsum("om,mcij->ocij", second.weight[:, :, row, column], first.weight)
        top, left = row * steps[0], column * steps[1]
        weight[:, :, top : top + kernel[0], left : left + kernel[1]] += part
    return weight
