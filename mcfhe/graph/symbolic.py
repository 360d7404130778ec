"""Values of the importer: polynomials, with constant coefficients per channel, in a value of the graph.

Whatever way an activation is spelled (``x * x``, ``torch.pow``, Horner's rule, buffers as coefficients), running it
on these values gives its coefficients. Only when an operation that is no polynomial needs the result does the
builder turn it into one :class:`~mcfhe.graph.nodes.Poly`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mcfhe.graph.nodes import (
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    Flatten,
    Graph,
    Input,
    Linear,
    Node,
    Poly,
    Shape,
    infer_shape,
)

IDENTITY = np.array([[0.0, 1.0]])


@dataclass(frozen=True, eq=False, slots=True)
class Value:
    """sum_i coefficients[c, i] * base**i, where ``base`` is a value of the graph under construction.

    ``view`` is the shape without the batch in which torch currently sees the value, when that is not the base's own:
    between two reshapes, for example (C, H * W). Only another reshape may follow.
    """

    base: int
    coefficients: np.ndarray  # float64 [1 or C, degree + 1], no trailing column of zeros
    name: str = ""  # the layer that made it a polynomial
    view: Shape | None = None

    @property
    def degree(self) -> int:
        return int(self.coefficients.shape[1]) - 1

    @property
    def is_base(self) -> bool:
        return np.array_equal(self.coefficients, IDENTITY)

    def with_coefficients(self, coefficients: np.ndarray, name: str) -> Value:
        """The same base under other coefficients, brought to normal form: fewest rows and columns."""
        used = np.flatnonzero(coefficients.any(axis=0))
        coefficients = coefficients[:, : (used[-1] if used.size else 0) + 1]
        if (coefficients == coefficients[:1]).all():
            coefficients = coefficients[:1]
        return Value(self.base, coefficients, name)


def constant(values: np.ndarray) -> np.ndarray:
    """Coefficients of a polynomial of degree 0 from one number, or one a channel."""
    return values.reshape(-1, 1)


def add(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Coefficients of p + q, [R, D + 1] each, R equal or 1."""
    width = max(p.shape[1], q.shape[1])
    total = np.zeros((max(p.shape[0], q.shape[0]), width))
    total[:, : p.shape[1]] += p
    total[:, : q.shape[1]] += q
    return total


def multiply(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Coefficients of p * q, [R, D + 1] each, R equal or 1."""
    product = np.zeros((max(p.shape[0], q.shape[0]), p.shape[1] + q.shape[1] - 1))
    for i in range(q.shape[1]):
        product[:, i : i + p.shape[1]] += p * q[:, i : i + 1]
    return product


def power(p: np.ndarray, exponent: int) -> np.ndarray:
    """Coefficients of p ** exponent, exponent >= 0."""
    result = np.ones((1, 1))
    for _ in range(exponent):
        result = multiply(result, p)
    return result


class GraphBuilder:
    """Appends nodes; asking twice for the same layer of the same value gives the same value back."""

    def __init__(self, input_shape: tuple[int, int, int]) -> None:
        self.nodes: list[Node] = []
        self.shapes: list[Shape] = []
        self._known: dict[tuple[object, ...], int] = {}
        self._names: dict[str, int] = {}
        self.append(Input(name="input", inputs=(), shape=input_shape))

    def append(self, node: Node) -> Value:
        """The node's value. An equal node that is there already is used instead; a name in use gets a number."""
        key = _key(node)
        if key not in self._known:
            self.shapes.append(infer_shape(node, [self.shapes[i] for i in node.inputs]))
            self._names[node.name] = self._names.get(node.name, 0) + 1
            if self._names[node.name] > 1:  # a module that runs more than once
                node = replace(node, name=f"{node.name}#{self._names[node.name]}")
            self.nodes.append(node)
            self._known[key] = len(self.nodes) - 1
        return Value(self._known[key], IDENTITY)

    def materialise(self, value: Value) -> int:
        """Index of the graph value that equals ``value``: its base, or a Poly of it."""
        if value.is_base:
            return value.base
        return self.append(Poly(name=value.name, inputs=(value.base,), coefficients=value.coefficients)).base

    def finish(self, output: int) -> Graph:
        """The graph up to ``output``: in a straight line nothing after it can matter."""
        return Graph(tuple(self.nodes[: output + 1]))


def _key(node: Node) -> tuple[object, ...]:
    """What makes two nodes the same layer: everything but the name, arrays by content."""
    fields: tuple[object, ...]
    match node:
        case Conv2d():
            settings = (node.stride, node.padding, node.dilation, node.groups)
            fields = (*_content(node.weight), *_content(node.bias), *settings)
        case Linear():
            fields = (*_content(node.weight), *_content(node.bias))
        case AvgPool2d():
            fields = (node.kernel, node.stride, node.padding, node.divisor)
        case Poly():
            fields = _content(node.coefficients)
        case Input() | Add() | Concat() | Flatten():
            fields = ()
        case _:
            fields = (id(node),)
    return (type(node), node.inputs, *fields)


def _content(array: np.ndarray | None) -> tuple[object, ...]:
    return (None,) if array is None else (array.shape, array.tobytes())
