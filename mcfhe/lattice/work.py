"""What a lattice program costs, in relative units: enough to compare plans with each other."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from mcfhe.graph.nodes import AvgPool2d, Conv2d, Flatten, Graph, Linear, Node, Poly
from mcfhe.lattice.lower import Placement

# Relative costs of one residue: a multiply-add in a layer, and one transform in a ring step (log2(n) / 2 butterflies).
MULTIPLY_ADD = 0.02
TRANSFORM = 1.0
_TYPICAL_RING_STEP = 60 * TRANSFORM  # of one ciphertext: what is compared by it differs by far more than levels do


def multiply_adds(node: Node, outputs: int) -> int:
    """Of one limb and component, for a node with so many outputs."""
    match node:
        case Conv2d() | Linear():
            return int(node.weight[0].size) * outputs
        case AvgPool2d():
            return node.kernel[0] * node.kernel[1] * outputs
    return outputs


def linear_work(node: Node, outputs: int) -> float:
    """Of a node, for one limb and component."""
    return MULTIPLY_ADD * multiply_adds(node, outputs)


def ring_work(count: int, limbs: int, rescales: int, limbs_after: int) -> float:
    """Rescaling ``count`` ciphertexts of three components from ``limbs`` on, then relinearising ``limbs_after``."""
    rescaled = sum(3 * (limbs - i) for i in range(rescales))
    return TRANSFORM * count * (rescaled + limbs_after * limbs_after + 4 * limbs_after)


def work(graph: Graph, limbs: int, placements: Iterable[tuple[int, Placement]]) -> float:
    """Of a whole program whose ciphertexts have ``limbs`` limbs at first: per column of the stream, so that ring
    degrees compare by the image."""
    places, levels, parts, total = dict(placements), [limbs], [2], 0.0
    for index, (node, shape) in enumerate(zip(graph.nodes, graph.shapes, strict=True)):
        if not index:
            continue
        count, level = prod(shape), min(levels[i] for i in node.inputs)
        components = 3 if isinstance(node, Poly) else parts[node.inputs[0]]
        total += linear_work(node, count) * level * components
        if (placement := places.get(index)) is not None:
            total += ring_work(count, level, placement.rescales, placement.limbs)
            level, components = placement.limbs, 2
        levels.append(level)
        parts.append(components)
    return total


def ring_points(graph: Graph) -> dict[int, int]:
    """For every square (index of its node) the index of the node after which it is rescaled and relinearised.

    Behind a square only linear steps follow up to the next square, a sum, or a value that is read twice; of the nodes
    in between, the one where ciphertexts are fewest, counting that linear layers cost half as much again until then.
    """
    readers: dict[int, list[int]] = {}
    for index, node in enumerate(graph.nodes):
        for source in node.inputs:
            readers.setdefault(source, []).append(index)
    points = {}
    for index, node in enumerate(graph.nodes):
        if not isinstance(node, Poly):
            continue
        best, best_cost, extra, at = index, float("inf"), 0.0, index
        while True:
            cost = prod(graph.shapes[at]) * _TYPICAL_RING_STEP + extra
            if cost < best_cost:
                best, best_cost = at, cost
            following = readers.get(at, [])
            if len(following) != 1 or not isinstance(graph.nodes[following[0]], (Conv2d, Linear, AvgPool2d, Flatten)):
                break
            at = following[0]
            extra += 6 * linear_work(graph.nodes[at], prod(graph.shapes[at]))
        points[index] = best
    return points
