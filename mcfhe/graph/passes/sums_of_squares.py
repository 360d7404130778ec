"""Activations of any degree up to 4 as squares, sums and linear layers: all that the lattice scheme can run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from mcfhe.errors import UnsupportedLayerError
from mcfhe.graph.nodes import Add, Conv2d, Graph, Linear, Node, Poly, Shape
from mcfhe.graph.passes.registry import graph_pass
from mcfhe.graph.passes.rewrite import Rewriter, leading
from mcfhe.graph.squarings import balance, composition, composition_holds, difference, negligible

MOST = 4
NAME = "sums_of_squares"


@graph_pass(NAME, default=False)
def sums_of_squares(graph: Graph, *, keep_weights: bool = False) -> Graph:
    """Polynomials of degree 3 and 4 become quadratics of quadratics and one sum or two (:mod:`mcfhe.graph.squarings`).

    Coefficients that are nothing beside the others go first. A quartic whose condition allows it in every
    channel is composed; its leading coefficient keeps its power of two, which pays no scale, and the rest of it, in
    1..2, goes into all layers that read the activation, where those can take it. All else is a difference of two
    squares. A layer of degree 1 that no neighbour has taken is a 1 x 1 convolution by channels, or a diagonal matrix.
    The lattice scheme runs it always, the modular scheme never: it has products of its own.

    Args:
        keep_weights: move no factor into other layers, whose weights may be rounded already. A composed quartic keeps
            its leading coefficient then, and the scale that it pays: its node is that of :func:`outer_part`.

    Raises:
        UnsupportedLayerError: a degree above 4, or a constant; names the layer.
    """
    graph = Graph(tuple(_trimmed(node) for node in graph.nodes))
    rewriter = Rewriter(graph)
    composed = set()
    for index, node in enumerate(rewriter.nodes):
        if isinstance(node, Poly) and leading(node)[0] > 2 and all(map(composition_holds, _rows(node))):
            composed.add(index)
            if not keep_weights:
                rewriter.nodes[index] = _mantissa_moved(rewriter, index, node)
    nodes, position = list[Node](), list[int]()
    for index, node in enumerate(rewriter.nodes):
        node = replace(node, inputs=tuple(position[i] for i in node.inputs))
        for part in _parts(node, graph.shapes[index], index in composed, len(nodes)):
            nodes.append(part)
        position.append(len(nodes) - 1)
    return Graph(tuple(nodes))


def outer_part(name: str) -> str:
    """Name of the node with the leading coefficient of a composed quartic, unless it keeps the quartic's own."""
    return _part_name(name, "outer")


def _part_name(name: str, part: str) -> str:
    return f"{name}: {part}"


def _trimmed(node: Node) -> Node:
    """Without leading coefficients that are negligible in every channel; refused if what is left is no activation."""
    if not isinstance(node, Poly):
        return node
    rows = node.coefficients
    rows = rows[:, : leading(node)[0] + 1]
    while rows.shape[1] > 2 and all(negligible(row[-1], len(row) - 1, row) for row in _fractions(rows)):
        rows = rows[:, :-1]
    degree = rows.shape[1] - 1
    if not 1 <= degree <= MOST:
        fix = f"convert with max_degree={MOST} or train with a lower degree" if degree else "leave the layer out"
        raise UnsupportedLayerError(
            f"layer {node.name!r}: degree {degree}; the lattice scheme runs activations of degree 1 to {MOST}: {fix}, "
            "or choose scheme='modular', which runs any"
        )
    return replace(node, coefficients=rows)


def _rows(node: Poly) -> list[list[Fraction]]:
    """Five coefficients of each row."""
    padding = [Fraction(0)] * (MOST + 1 - node.coefficients.shape[1])
    return [row + padding for row in _fractions(node.coefficients)]


def _fractions(rows: np.ndarray) -> list[list[Fraction]]:
    return [[Fraction(float(a)) for a in row] for row in rows]


def _mantissa_moved(rewriter: Rewriter, index: int, node: Poly) -> Poly:
    """a4 = m 2^e with |m| in 1..2: the polynomial over m, if all readers can take the factor m."""
    mantissas = np.abs(np.frexp(node.coefficients[:, -1])[0]) * 2
    channels = rewriter.channels(index)
    if not rewriter.push_forward(index, np.broadcast_to(mantissas, channels), np.zeros(channels)):
        return node
    rows = node.coefficients / mantissas[:, None]
    rows[:, -1] = np.ldexp(np.sign(rows[:, -1]), np.frexp(node.coefficients[:, -1])[1] - 1)
    return replace(node, coefficients=rows)


def _parts(node: Node, shape: Shape, composed: bool, first: int) -> list[Node]:
    """What stands for a node, its last part under its name; ``first``: index of the first part."""
    if not isinstance(node, Poly) or node.coefficients.shape[1] == 3:
        return [node]
    if node.coefficients.shape[1] == 2:
        return [_linear_layer(node, shape)]
    rows = _rows(node)
    if composed:
        forms = [composition(row) for row in rows]
        inner = _poly(node, "inner", node.inputs, [form.inner for form in forms])
        outer = _poly(node, "outer", (first,), [form.outer for form in forms])
        return _with_rest(node, [inner, outer], [form.rest for form in forms], first)
    t = balance(rows)
    halves = [difference(row, t) for row in rows]
    one, zero = Fraction(1), Fraction(0)
    squares = [
        _poly(node, "plus", node.inputs, [half.plus for half in halves]),
        _poly(node, "minus", node.inputs, [half.minus for half in halves]),
        _poly(node, "plus squared", (first,), [(half.rest[0], zero, one) for half in halves]),
        _poly(node, "minus squared", (first + 1,), [(zero, zero, -one)]),
    ]
    total = Add(name=_part_name(node.name, "difference"), inputs=(first + 2, first + 3))
    return _with_rest(node, [*squares, total], [(zero, half.rest[1]) for half in halves], first)


def _with_rest(node: Poly, parts: list[Node], rests: Sequence[tuple[Fraction, Fraction]], first: int) -> list[Node]:
    """``parts`` and, where it is not negligible, a linear polynomial of what they read, added to the last of them."""
    if all(negligible(rest[1], 1, row) for row, rest in zip(_rows(node), rests, strict=True)):
        return [*parts[:-1], replace(parts[-1], name=node.name)]
    last = first + len(parts)
    rest = _poly(node, "rest", node.inputs, rests)
    return [*parts, rest, Add(name=node.name, inputs=(last - 1, last))]


def _poly(node: Poly, part: str, inputs: tuple[int, ...], rows: Sequence[Sequence[Fraction]]) -> Poly:
    coefficients = np.array([[float(a) for a in row] for row in rows])
    return Poly(name=_part_name(node.name, part), inputs=inputs, coefficients=coefficients)


def _linear_layer(node: Poly, shape: Shape) -> Conv2d | Linear:
    offset, gain = (np.broadcast_to(node.coefficients[:, i], shape[:1]).copy() for i in (0, 1))
    bias = offset if offset.any() else None
    if len(shape) == 1:
        return Linear(name=node.name, inputs=node.inputs, weight=np.diag(gain), bias=bias)
    return Conv2d(
        name=node.name,
        inputs=node.inputs,
        weight=gain.reshape(-1, 1, 1, 1),
        bias=bias,
        stride=(1, 1),
        padding=(0, 0),
        dilation=(1, 1),
        groups=len(gain),
    )
