"""Fold the 1 / k**2 of average pooling into a neighbour, so that what stays is a sum over windows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mcfhe.graph.nodes import AvgPool2d, Graph, Poly
from mcfhe.graph.passes.registry import graph_pass
from mcfhe.graph.passes.rewrite import Rewriter


@graph_pass("fold_pool_factors", default=True)
def fold_pool_factors(graph: Graph) -> Graph:
    """Pools get a divisor of 1, where a neighbour can take the factor.

    sum / d goes as a gain of 1 / d into all layers that read the pool, or else into the layer before it, which only
    this pool may read: the factor of a sum is the factor of its terms, those that are zero padding included. It saves
    the plan one scale for every pool.
    """
    rewriter = Rewriter(graph)
    for index, node in enumerate(rewriter.nodes):
        if isinstance(node, AvgPool2d) and node.divisor > 1 and _fold(rewriter, index, node):
            rewriter.nodes[index] = replace(node, divisor=1)
    return rewriter.graph()


def _fold(rewriter: Rewriter, index: int, node: AvgPool2d) -> bool:
    gain = np.full(rewriter.channels(index), 1 / node.divisor)
    nothing = np.zeros_like(gain)
    source = node.inputs[0]
    if rewriter.push_forward(index, gain, nothing) or rewriter.pull_back(source, gain, nothing):
        return True
    before = rewriter.nodes[source]
    if isinstance(before, Poly) and rewriter.is_read_once(source):
        rewriter.nodes[source] = replace(before, coefficients=before.coefficients / node.divisor)
        return True
    return False
