"""The float graph evaluated in float64: the reference of the importer and of every pass."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from mcfhe.graph.nodes import Add, AvgPool2d, Concat, Conv2d, Flatten, Graph, Linear, Node, Poly


def evaluate_floats(graph: Graph, images: np.ndarray) -> np.ndarray:
    """Output of ``graph``, float64 ``[batch, ...]``, for normalised images, float64 ``[batch, C, H, W]``."""
    return float_values(graph, images)[-1].numpy()


def float_values(graph: Graph, images: np.ndarray) -> list[Tensor]:
    """The value of every node, as :func:`evaluate_floats` has the last."""
    values: list[Tensor] = [torch.from_numpy(np.ascontiguousarray(images, dtype=np.float64))]
    with torch.no_grad():
        for node in graph.nodes[1:]:
            values.append(_evaluate(node, [values[i] for i in node.inputs]))
    return values


def _evaluate(node: Node, inputs: list[Tensor]) -> Tensor:
    x = inputs[0]
    match node:
        case Conv2d():
            weight, bias = torch.from_numpy(node.weight), None if node.bias is None else torch.from_numpy(node.bias)
            return functional.conv2d(x, weight, bias, node.stride, node.padding, node.dilation, node.groups)
        case Linear():
            bias = None if node.bias is None else torch.from_numpy(node.bias)
            return functional.linear(x, torch.from_numpy(node.weight), bias)
        case AvgPool2d():
            return functional.avg_pool2d(x, node.kernel, node.stride, node.padding, divisor_override=1) / node.divisor
        case Poly():
            terms = torch.from_numpy(node.coefficients).reshape(
                1, -1, *(1,) * (x.dim() - 2), node.coefficients.shape[1]
            )
            y = terms[..., -1].expand_as(x)
            for i in range(node.coefficients.shape[1] - 2, -1, -1):
                y = y * x + terms[..., i]
            return y
        case Add():
            return x + inputs[1]
        case Concat():
            return torch.cat(inputs, dim=1)
        case Flatten():
            return x.flatten(1)
    raise TypeError(f"no float evaluation for {type(node).__name__}")
