"""The float graph: the imported network as a short list of layers, before any scheme, order or scale.

A graph is a straight line of nodes. Node 0 is the :class:`Input`; node i reads the values named in ``inputs``, all
of them smaller than i, and produces value i; the last node is the output. Constants are numpy float64.

Shapes leave out the batch: a feature map is ``(C, H, W)``, a vector is ``(K,)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from mcfhe.errors import ParameterError

Shape = tuple[int, ...]

MAX_DEGREE = 16
MAX_ELEMENTS = 1 << 26  # of one value; a graph read from a file must not be able to ask for more
MAX_VECTOR = 1 << 22


@dataclass(frozen=True, eq=False, kw_only=True)
class Node:
    """One layer. ``name`` is the layer of the user's model that it came from, unique within a graph."""

    op: ClassVar[str]
    name: str
    inputs: tuple[int, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Input(Node):
    """The image, ``(C, H, W)``."""

    op = "input"
    shape: tuple[int, int, int]


@dataclass(frozen=True, eq=False, kw_only=True)
class Conv2d(Node):
    """y[o] = sum over taps of weight[o, c, i, j] * x[c, ...] + bias[o], zero padding, as torch.nn.functional.conv2d."""

    op = "conv2d"
    weight: np.ndarray  # float64 [O, C / groups, kh, kw]
    bias: np.ndarray | None  # float64 [O]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(Node):
    """y[o] = sum_k weight[o, k] * x[k] + bias[o] on a vector."""

    op = "linear"
    weight: np.ndarray  # float64 [O, K]
    bias: np.ndarray | None  # float64 [O]


@dataclass(frozen=True, eq=False, kw_only=True)
class AvgPool2d(Node):
    """y = (sum of the window) / divisor, zero padding; the windows that fit, as ceil_mode=False."""

    op = "avg_pool2d"
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    divisor: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Poly(Node):
    """y = sum_i coefficients[c, i] * x**i; one row for all channels (or vector entries), or one row for each."""

    op = "poly"
    coefficients: np.ndarray  # float64 [1 or C, degree + 1]


@dataclass(frozen=True, eq=False, kw_only=True)
class Add(Node):
    """y = x0 + x1, equal shapes."""

    op = "add"


@dataclass(frozen=True, eq=False, kw_only=True)
class Concat(Node):
    """Channels (or vector entries) of all inputs one after the other."""

    op = "concat"


@dataclass(frozen=True, eq=False, kw_only=True)
class Flatten(Node):
    """(C, H, W) -> (C * H * W,), row major."""

    op = "flatten"


def window_count(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """Output size of one axis of a convolution or pool, as torch: windows that lie inside the padded input."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


@dataclass(frozen=True, eq=False)
class Graph:
    """A validated float graph.

    Raises:
        ParameterError: a node reads a value that is not there, shapes do not fit, a constant is not finite float64;
            names the layer.
    """

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        names = [node.name for node in self.nodes]
        if len(set(names)) != len(names):
            raise ParameterError(f"graph: two layers are named {max(names, key=names.count)!r}")
        if not self.nodes or not isinstance(self.nodes[0], Input):
            raise ParameterError("graph: the first node must be the input")
        if any(isinstance(node, Input) for node in self.nodes[1:]):
            raise ParameterError("graph: more than one input")
        _ = self.shapes

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """Shape of every value, by inference from the input."""
        shapes: list[Shape] = []
        for index, node in enumerate(self.nodes):
            if any(not 0 <= i < index for i in node.inputs):
                raise ParameterError(f"layer {node.name!r}: reads values {node.inputs}, only 0..{index - 1} are there")
            shape = infer_shape(node, [shapes[i] for i in node.inputs])
            limit = MAX_VECTOR if len(shape) == 1 else MAX_ELEMENTS
            if math.prod(shape) > limit:
                raise ParameterError(f"layer {node.name!r}: output {shape} has more than {limit} elements")
            shapes.append(shape)
        return tuple(shapes)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        node = self.nodes[0]
        if not isinstance(node, Input):
            raise ParameterError("graph: the first node must be the input")
        return node.shape

    @property
    def output_shape(self) -> Shape:
        return self.shapes[-1]


def infer_shape(node: Node, inputs: Sequence[Shape]) -> Shape:
    """Output shape of one node; ParameterError naming the layer if its inputs or constants do not fit."""
    arity = {Input: (0, 0), Add: (2, 2), Concat: (1, 1 << 16)}.get(type(node), (1, 1))
    _require(arity[0] <= len(inputs) <= arity[1], node, f"takes {arity[0]}..{arity[1]} inputs, has {len(inputs)}")
    match node:
        case Input():
            _require(len(node.shape) == 3 and min(node.shape) >= 1, node, f"shape {node.shape} is not (C, H, W)")
            return node.shape
        case Conv2d():
            return _conv_shape(node, inputs[0])
        case Linear():
            _constants(node, node.weight, node.bias, 2)
            _require(inputs[0] == node.weight.shape[1:], node, f"{node.weight.shape[1]} inputs, given {inputs[0]}")
            return (node.weight.shape[0],)
        case AvgPool2d():
            _require(type(node.divisor) is int and node.divisor >= 1, node, f"divisor {node.divisor!r} is not positive")
            # torch's rule; with more padding some windows would hold nothing but zeros
            _require(
                all(2 * p <= k for p, k in zip(node.padding, node.kernel, strict=True)), node, "padding > kernel / 2"
            )
            return _map_shape(node, inputs[0], inputs[0][0], node.kernel, node.stride, node.padding, (1, 1))
        case Poly():
            c = node.coefficients
            _require(c.ndim == 2 and 1 <= c.shape[1] <= MAX_DEGREE + 1, node, f"coefficients of shape {c.shape}")
            _require(c.shape[0] in (1, inputs[0][0]), node, f"{c.shape[0]} rows for {inputs[0][0]} channels")
            _finite(node, "coefficients", c)
            return inputs[0]
        case Add():
            _require(inputs[0] == inputs[1], node, f"operands of shapes {inputs[0]} and {inputs[1]}")
            return inputs[0]
        case Concat():
            _require(len({s[1:] for s in inputs}) == 1, node, f"operands of shapes {list(inputs)}")
            return (sum(s[0] for s in inputs), *inputs[0][1:])
        case Flatten():
            return (math.prod(inputs[0]),)
    raise ParameterError(f"layer {node.name!r}: unknown node {type(node).__name__}")


def _conv_shape(node: Conv2d, shape: Shape) -> Shape:
    _constants(node, node.weight, node.bias, 4)
    outputs, per_group, *kernel = node.weight.shape
    groups = node.groups
    fits = len(shape) == 3 and groups >= 1 and shape[0] == per_group * groups and outputs % groups == 0
    _require(fits, node, f"weight {node.weight.shape} with groups={groups} does not fit input {shape}")
    return _map_shape(node, shape, outputs, (kernel[0], kernel[1]), node.stride, node.padding, node.dilation)


def _map_shape(
    node: Node,
    shape: Shape,
    channels: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Shape:
    _require(len(shape) == 3, node, f"needs a feature map (C, H, W), given {shape}")
    _require(
        min(*kernel, *stride, *dilation) >= 1 and min(padding) >= 0, node, "kernel, stride or padding out of range"
    )
    size = tuple(window_count(*axis) for axis in zip(shape[1:], kernel, stride, padding, dilation, strict=True))
    _require(min(size) >= 1, node, f"kernel {kernel} is larger than its input {shape}")
    return (channels, *size)


def _constants(node: Node, weight: np.ndarray, bias: np.ndarray | None, ndim: int) -> None:
    _require(weight.ndim == ndim and weight.size > 0, node, f"weight of shape {weight.shape}")
    _finite(node, "weight", weight)
    if bias is not None:
        _require(bias.shape == weight.shape[:1], node, f"bias of shape {bias.shape} for {weight.shape[0]} outputs")
        _finite(node, "bias", bias)


def _finite(node: Node, field: str, values: np.ndarray) -> None:
    _require(values.dtype == np.float64, node, f"{field} is {values.dtype}, not float64")
    _require(bool(np.isfinite(values).all()), node, f"{field} holds values that are not finite")


def _require(condition: bool, node: Node, message: str) -> None:
    if not condition:
        raise ParameterError(f"layer {node.name!r}: {message}")
