"""Complete the square: a quadratic activation becomes a bias, a squaring and a constant."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mcfhe.graph.nodes import Graph, Poly
from mcfhe.graph.passes.registry import graph_pass
from mcfhe.graph.passes.rewrite import SMALLEST_LEADING, Rewriter, leading


@graph_pass("complete_squares", default=True)
def complete_squares(graph: Graph) -> Graph:
    """c0 + c1 x + c2 x**2 = c2 (x + h)**2 + d with h = c1 / (2 c2), d = c0 - c1 h / 2.

    h goes into the bias of the layer that makes x, behind any padding of its own; a quadratic after something that has
    no bias stays as it is. d goes into the biases of the layers that read the result. It does not where one of them
    pads with zeros (the padding stands for zeros of the activation, not of the square), where it meets a sum or is
    itself the output: there d stays in the polynomial, in front of the padding, and costs an addition but no order.
    """
    rewriter = Rewriter(graph)
    for index, node in enumerate(rewriter.nodes):
        if not isinstance(node, Poly):
            continue
        degree, c2 = leading(node)
        if degree != 2 or np.abs(c2).min() < SMALLEST_LEADING:
            continue
        c0, c1 = node.coefficients[:, 0], node.coefficients[:, 1]
        shift = c1 / (2 * c2)
        constant = c0 - c1 * shift / 2
        ones = np.ones(rewriter.channels(index))
        if c1.any() and not rewriter.pull_back(node.inputs[0], ones, np.broadcast_to(shift, ones.shape)):
            continue
        if rewriter.push_forward(index, ones, np.broadcast_to(constant, ones.shape)):
            constant = np.zeros_like(constant)
        rows = np.stack([constant, np.zeros_like(c2), c2], axis=1)
        rewriter.nodes[index] = replace(node, coefficients=rows)
    return rewriter.graph()
