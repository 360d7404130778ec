"""Add operands of equal degree first, so that sums align as little as possible."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from mcfhe.graph.nodes import Add, AvgPool2d, Conv2d, Graph, Linear, Node, Poly
from mcfhe.graph.passes.registry import graph_pass
from mcfhe.graph.passes.rewrite import leading


@graph_pass("regroup_sums", default=True)
def regroup_sums(graph: Graph) -> Graph:
    """Trees of sums become chains that add the lowest orders first.

    A sum of operands at different orders multiplies every value of the lower one. In (high + low) + low that happens
    twice, in (low + low) + high once: a chain in ascending order aligns once for every step from one order to the next,
    and there can be no fewer. Orders belong to a plan; what stands for them here is the degree in the image, which is
    their t exactly, and then the number of scales on the way. A tree ends at sums that others read, too. Exact: the
    same operands are added, and the nodes are as many as before.
    """
    weights = _weights(graph)
    readers = [0] * len(graph.nodes)
    for node in graph.nodes:
        for source in node.inputs:
            readers[source] += 1
    nodes = list(graph.nodes)
    inner = {
        source
        for node in nodes
        if isinstance(node, Add)
        for source in node.inputs
        if isinstance(nodes[source], Add) and readers[source] == 1
    }
    for root, node in enumerate(graph.nodes):
        if not isinstance(node, Add) or root in inner:
            continue
        sums = sorted(_sums(graph, root, inner))
        operands = sorted((i for s in sums for i in graph.nodes[s].inputs if i not in inner), key=lambda i: weights[i])
        steps = sum(weights[a] != weights[b] for a, b in pairwise(operands))
        if steps >= _alignments(graph, sums, weights):
            continue
        _chain(nodes, sums, operands)
    return Graph(_ordered(nodes))


def _weights(graph: Graph) -> list[tuple[int, int]]:
    """(degree, scales) of every value; a polynomial of a value with (d, s) is at (D d, D s), one more if not monic."""
    weights = [(1, 1)]
    for node in graph.nodes[1:]:
        degree, scales = max(weights[i] for i in node.inputs)
        match node:
            case Conv2d() | Linear():
                scales += 1
            case AvgPool2d():
                scales += node.divisor > 1
            case Poly():
                power, factors = leading(node)
                degree, scales = degree * power, scales * power + bool((factors % 1).any())
        weights.append((degree, scales))
    return weights


def _sums(graph: Graph, root: int, inner: set[int]) -> Iterator[int]:
    """The sums of the tree at ``root``."""
    yield root
    for source in graph.nodes[root].inputs:
        if source in inner:
            yield from _sums(graph, source, inner)


def _alignments(graph: Graph, sums: list[int], weights: list[tuple[int, int]]) -> int:
    """Sums of a tree whose operands are at different orders."""
    return sum(len({weights[i] for i in graph.nodes[s].inputs}) > 1 for s in sums)


def _chain(nodes: list[Node], sums: list[int], operands: list[int]) -> None:
    """The sums of a tree, its root last, as ((o0 + o1) + o2) + ... ."""
    total = operands[0]
    for position, operand in zip(sums, operands[1:], strict=True):
        nodes[position] = replace(nodes[position], inputs=(total, operand))
        total = position


def _ordered(nodes: list[Node]) -> tuple[Node, ...]:
    """In an order in which every value is there before it is read; the last stays last, others keep theirs if they can.

    A sum may have got an operand that is made after it.
    """
    position: dict[int, int] = {}
    ordered: list[Node] = []
    waiting = list(range(len(nodes)))
    while waiting:
        index = next(i for i in waiting if all(source in position for source in nodes[i].inputs))
        waiting.remove(index)
        position[index] = len(ordered)
        ordered.append(replace(nodes[index], inputs=tuple(position[i] for i in nodes[index].inputs)))
    return tuple(ordered)
