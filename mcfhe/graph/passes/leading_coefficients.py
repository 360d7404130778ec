"""Make activations monic: a polynomial whose leading coefficient is 1 pays no scale for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mcfhe.graph.nodes import Graph, Poly
from mcfhe.graph.passes.registry import graph_pass
from mcfhe.graph.passes.rewrite import SMALLEST_LEADING, Rewriter, leading


@graph_pass("fold_leading_coefficients", default=True)
def fold_leading_coefficients(graph: Graph) -> Graph:
    """p = c_D (x**D + ...) with a factor c_D for each channel that is moved elsewhere.

    It goes into all layers that read p. Where one of those cannot take it, x is rescaled instead, in the layer that
    makes it: with z = |c_D|**(1 / D) x, p is +-z**D plus lower terms c_i |c_D|**(-i / D) z**i. Whole leading
    coefficients cost nothing in the first place and stay.
    """
    rewriter = Rewriter(graph)
    for index, node in enumerate(rewriter.nodes):
        if not isinstance(node, Poly):
            continue
        degree, factors = leading(node)
        if degree < 1 or (factors == np.rint(factors)).all() or np.abs(factors).min() < SMALLEST_LEADING:
            continue
        rows = node.coefficients[:, : degree + 1]
        everywhere = (rewriter.channels(index),)
        nothing = np.zeros(everywhere)
        if rewriter.push_forward(index, np.broadcast_to(factors, everywhere), nothing):
            rewriter.nodes[index] = replace(node, coefficients=_with_leading(rows / factors[:, None], 1.0))
            continue
        stretch = np.abs(factors) ** (1 / degree)
        if rewriter.pull_back(node.inputs[0], np.broadcast_to(stretch, everywhere), nothing):
            rows = rows / stretch[:, None] ** np.arange(degree + 1)
            rewriter.nodes[index] = replace(node, coefficients=_with_leading(rows, np.sign(factors)))
    return rewriter.graph()


def _with_leading(rows: np.ndarray, value: np.ndarray | float) -> np.ndarray:
    """With the coefficient that is whole by construction free of rounding."""
    rows[:, -1] = value
    return rows
