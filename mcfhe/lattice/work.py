"""What a lattice program costs, in relative units: enough to compare plans with each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from math import prod

from mcfhe.graph.nodes import Add, AvgPool2d, Conv2d, Flatten, Graph, Linear, Node
from mcfhe.lattice.lower import Placement, is_linear, is_square

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


def components(graph: Graph, places: Collection[int]) -> list[int]:
    """Of every node's value, relinearised at ``places``."""
    parts = list[int]()
    for index, node in enumerate(graph.nodes):
        inputs = [parts[i] for i in node.inputs]
        linear = isinstance(node, Add) and any(is_linear(graph.nodes[i]) for i in node.inputs)
        three = is_square(node) or linear or 3 in inputs
        parts.append(3 if three and index not in places else 2)
    return parts


def work(graph: Graph, limbs: int, placements: Iterable[tuple[int, Placement]]) -> float:
    """Of a whole program whose ciphertexts have ``limbs`` limbs at first: per column of the stream, so that ring
    degrees compare by the image."""
    places, levels, total = dict(placements), [limbs], 0.0
    parts = components(graph, places)
    for index, (node, shape) in enumerate(zip(graph.nodes, graph.shapes, strict=True)):
        if not index:
            continue
        count, level = prod(shape), min(levels[i] for i in node.inputs)
        total += linear_work(node, count) * level * (3 if index in places else parts[index])
        if (placement := places.get(index)) is not None:
            total += ring_work(count, level, placement.rescales, placement.limbs)
            level = placement.limbs
        levels.append(level)
    return total


def ring_points(graph: Graph) -> dict[int, int]:
    """For every square (index of its node) the index of the node after which it is rescaled and relinearised.

    Behind a square follow, up to the next square or a value that is read twice, linear steps and sums. Of these the
    node where ciphertexts are fewest, counting that linear layers cost half as much again until then, and that squares
    which meet in a sum share what is behind it. But not before a sum, or several in a row: a square that is not yet
    rescaled meets other values at a scale far above theirs, so that they are aligned for nothing.
    """
    readers: dict[int, list[int]] = {}
    for index, node in enumerate(graph.nodes):
        for source in node.inputs:
            readers.setdefault(source, []).append(index)
    squares = [i for i, node in enumerate(graph.nodes) if is_square(node)]
    paths = {square: _path(graph, readers, square) for square in squares}
    meeting = Counter(index for path in paths.values() for index in path)
    points = {}
    for square, path in paths.items():
        candidates = path[_after_sums(graph, path) :]
        extra, costs = 0.0, list[float]()
        for number, index in enumerate(candidates):
            count = prod(graph.shapes[index])
            extra += 6 * linear_work(graph.nodes[index], count) if number else 0.0
            costs.append(count * _TYPICAL_RING_STEP / meeting[index] + extra)
        points[square] = candidates[costs.index(min(costs))]
    return _first_of_each(paths, points)


def _path(graph: Graph, readers: Mapping[int, Sequence[int]], square: int) -> list[int]:
    path = [square]
    while len(following := readers.get(path[-1], ())) == 1:
        if not isinstance(graph.nodes[following[0]], (Conv2d, Linear, AvgPool2d, Flatten, Add)):
            break
        path.append(following[0])
    return path


def _after_sums(graph: Graph, path: Sequence[int]) -> int:
    """Position of the last one of the first sums that follow each other; 0 without sums."""
    sums = [isinstance(graph.nodes[index], Add) for index in path]
    if True not in sums:
        return 0
    first = sums.index(True)
    return next((i for i in range(first, len(path)) if not sums[i]), len(path)) - 1


def _first_of_each(paths: Mapping[int, Sequence[int]], points: dict[int, int]) -> dict[int, int]:
    """Squares that meet before two of their points are through with both at the first."""
    chosen = set(points.values())
    return {square: next(index for index in path if index in chosen) for square, path in paths.items()}
