"""Drop layers that compute nothing but would still be aligned, multiplied or paid for with a scale."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mcfhe.graph.nodes import AvgPool2d, Concat, Graph, Node, Poly
from mcfhe.graph.passes.registry import graph_pass
from mcfhe.graph.passes.rewrite import leading


@graph_pass("eliminate_dead_orders", default=True)
def eliminate_dead_orders(graph: Graph) -> Graph:
    """Readers of an identity read what it reads; polynomials lose leading columns of zeros.

    Identities are y = x as a polynomial, 1 x 1 pools of divisor 1 and stride 1, and concatenations of one value.
    """
    position: list[int] = []
    nodes: list[Node] = []
    last = len(graph.nodes) - 1
    for index, node in enumerate(graph.nodes):
        node = _trimmed(replace(node, inputs=tuple(position[i] for i in node.inputs)))
        # the output is the last node: an identity there can go only if it reads the node before it
        if _is_identity(node) and (index < last or node.inputs[0] == len(nodes) - 1 > 0):
            position.append(node.inputs[0])
            continue
        position.append(len(nodes))
        nodes.append(node)
    return Graph(tuple(nodes))


def _trimmed(node: Node) -> Node:
    if not isinstance(node, Poly):
        return node
    return replace(node, coefficients=node.coefficients[:, : leading(node)[0] + 1])


def _is_identity(node: Node) -> bool:
    match node:
        case Poly():
            return node.coefficients.shape[1] == 2 and bool((node.coefficients == np.array([0.0, 1.0])).all())
        case AvgPool2d():
            return node.kernel == (1, 1) == node.stride and node.padding == (0, 0) and node.divisor == 1
        case Concat():
            return len(node.inputs) == 1
    return False
