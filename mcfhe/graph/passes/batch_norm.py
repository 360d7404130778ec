"""Fold y = g x + h, one g and h per channel (batch normalisation in eval mode), into its neighbours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mcfhe.graph.nodes import Graph, Poly
from mcfhe.graph.passes.registry import graph_pass
from mcfhe.graph.passes.rewrite import Rewriter, leading

_IDENTITY = np.array([[0.0, 1.0]])


@graph_pass("fold_batch_norm", default=True)
def fold_batch_norm(graph: Graph) -> Graph:
    """Every polynomial of degree 1 becomes the identity, where a neighbour can take g and h.

    In this order: into the convolution or linear layer that makes x, w' = g w and b' = g b + h, padding or not; into
    the polynomial that makes x, c' = g c + (h, 0, ...); into all layers that read y (with h not through zero padding);
    into the one polynomial that reads y, p(g x + h) expanded. What fits nowhere stays.
    """
    rewriter = Rewriter(graph)
    for index, node in enumerate(rewriter.nodes):
        if not isinstance(node, Poly) or leading(node)[0] != 1 or np.array_equal(node.coefficients, _IDENTITY):
            continue
        if _fold(rewriter, index, node):
            rewriter.nodes[index] = replace(node, coefficients=_IDENTITY)
    return rewriter.graph()


def _fold(rewriter: Rewriter, index: int, node: Poly) -> bool:
    channels = rewriter.channels(index)
    offset, gain = (np.broadcast_to(node.coefficients[:, i], (channels,)) for i in (0, 1))
    source = node.inputs[0]
    if rewriter.pull_back(source, gain, offset):
        return True
    before = rewriter.nodes[source]
    if isinstance(before, Poly) and rewriter.is_read_once(source):
        rewriter.nodes[source] = replace(before, coefficients=_then_affine(before.coefficients, gain, offset))
        return True
    return rewriter.push_forward(index, gain, offset) or _into_next_polynomial(rewriter, index, gain, offset)


def _then_affine(rows: np.ndarray, gain: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Coefficients ``[C, D + 1]`` of gain * p + offset."""
    result: np.ndarray = rows * gain[:, None]
    result[:, 0] += offset
    return result


def _into_next_polynomial(rewriter: Rewriter, index: int, gain: np.ndarray, offset: np.ndarray) -> bool:
    if not rewriter.is_read_once(index):
        return False
    position = rewriter.reader(index)
    reader = rewriter.nodes[position]
    if not isinstance(reader, Poly):
        return False
    rows = np.broadcast_to(reader.coefficients, (len(gain), reader.coefficients.shape[1]))
    # Horner's rule on polynomials: p <- p * (gain x + offset) + c
    result = np.zeros(rows.shape)
    for column in rows.T[::-1]:
        result = result * offset[:, None] + np.roll(result, 1, axis=1) * gain[:, None]
        result[:, 0] += column
    rewriter.nodes[position] = replace(reader, coefficients=result)
    return True
