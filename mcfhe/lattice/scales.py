"""Which scale each layer of a lattice program has."""

from __future__ import annotations

from collections.abc import Mapping

from mcfhe.graph.nodes import Graph
from mcfhe.lattice.lower import is_linear
from mcfhe.modular.constants import relative_bits, without_common_factors

_LINEAR_BITS = 20


def layer_scales(graph: Graph, precision: int, known: Mapping[str, int]) -> dict[str, int]:
    """A scale for each layer that pays one, less the powers of two that all its integers share.

    Args:
        precision: of layers that are not ``known``, as in :func:`mcfhe.modular.constants.relative_bits`; at least 20
            bits of linear polynomials: they are rounded at the scale of a sum, and pay for no bits of their own.
        known: scales by name; names that pay none are passed over.
    """
    bits = relative_bits(graph, precision)
    finest = relative_bits(graph, max(precision, _LINEAR_BITS))
    bits |= {node.name: finest[node.name] for node in graph.nodes if is_linear(node) and node.name in finest}
    return without_common_factors(graph, bits | {name: known[name] for name in bits.keys() & known.keys()})
