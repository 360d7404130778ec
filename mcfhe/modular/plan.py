"""S5: the alignment plan. A float graph becomes exact integer arithmetic, every order and constant known beforehand.

The rules, with a the amplification; an integer V at order (t, k) stands for V / (a**t * 2**k):

- ciphertext * weight keeps t and adds the scale of the weights to k;
- a polynomial's terms are aligned to one order; the constants of the alignment and the coefficients become one
  integer A_i each, so that y = sum_i A_i x**i;
- a sum or a concatenation aligns all operands to (max t, max k).

How a weight or a constant is rounded, and what scale it has, is the business of :mod:`mcfhe.modular.constants`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

from mcfhe.errors import DepthError, ParameterError
from mcfhe.graph.nodes import Add, AvgPool2d, Concat, Conv2d, Flatten, Graph, Linear, Node, Poly, Shape
from mcfhe.graph.order import MAX_ORDER_BITS, Order
from mcfhe.graph.steps import (
    AddStep,
    ConcatStep,
    Conv2dStep,
    FlattenStep,
    IntegerProgram,
    LinearStep,
    PolyStep,
    PoolStep,
    Step,
)
from mcfhe.modular.constants import Constants, LayerConstants, LetterConstants


def input_orders(scale_bits: int) -> dict[str, Order]:
    """Order of an encrypted pixel by profile: PK * PT at (1, 2 scales), or PT directly under SK at (1, 1 scale)."""
    return {"patent": Order(1, 2 * scale_bits), "hardened": Order(1, scale_bits)}


def max_noise(amplification: int) -> int:
    """Noise is drawn from 0 <= e < max_noise; a // 2, so that it stays below half of the amplified unit."""
    return amplification // 2


def input_intervals(
    profile: str, table: Sequence[Sequence[int]], scale_bits: int, amplification: int
) -> list[tuple[int, int]]:
    """(lower, upper) of the encrypted integer V for each channel, over all pixels and all noise.

    patent: V = (a * Delta + e) * PT; hardened: V = a * PT + e; PT in ``table[c]``, 0 <= e < max_noise.
    """
    noise = max(0, max_noise(amplification) - 1)
    intervals = []
    for row in table:
        low, high = min(row), max(row)
        if profile == "patent":
            factors = (amplification << scale_bits, (amplification << scale_bits) + noise)
            products = [factor * plain for factor in factors for plain in (low, high)]
            intervals.append((min(products), max(products)))
        elif profile == "hardened":
            intervals.append((amplification * low, amplification * high + noise))
        else:
            raise ParameterError(f"profile {profile!r}: choose patent or hardened")
    return intervals


def constants_of(scale_bits: int, amplification: int, layer_bits: Mapping[str, int] | None) -> Constants:
    """By the letter, or with a scale for every layer if ``layer_bits`` gives them."""
    if layer_bits is None:
        return LetterConstants(scale_bits, amplification)
    return LayerConstants(layer_bits, amplification)


def quantise(graph: Graph, scale_bits: int, layer_bits: Mapping[str, int] | None = None) -> Graph:
    """The graph with its constants rounded to the grids of their scales, ties to even. Idempotent.

    By the letter all of them; with ``layer_bits`` those that pay a scale, since others are rounded by their order.

    Raises:
        ParameterError: a weight of 2**31 or more, or another constant of 2**53 or more, after scaling; a divisor so
            large that its factor is 0; no scale for a layer that needs one. Names the layer.
    """
    constants = constants_of(scale_bits, 1, layer_bits)
    return Graph(tuple(constants.quantised(node) for node in graph.nodes))


def lower(
    graph: Graph,
    scale_bits: int,
    amplification: int,
    input_order: Order,
    layer_bits: Mapping[str, int] | None = None,
) -> IntegerProgram:
    """The integer program of a graph for one order of the input.

    Args:
        graph: float constants; they are rounded here (:func:`quantise`).
        scale_bits: log2 of Delta, 1..30: the input's scale, and by the letter that of all layers.
        amplification: a, 1 or more.
        input_order: what the client's encryption produces, see :func:`input_orders`; k at least ``scale_bits``.
        layer_bits: a scale for every layer that pays one; None for the letter.

    Raises:
        ParameterError: as :func:`quantise`, or orders beyond any use (a**t * 2**k of more than 2**18 bits).
    """
    if not 1 <= scale_bits <= 30 or amplification < 1 or input_order.k < scale_bits:
        raise ParameterError(
            f"plan: scale_bits={scale_bits} (1..30), amplification={amplification} (1 or more), input order "
            f"{input_order} (k at least scale_bits)"
        )
    graph = quantise(graph, scale_bits, layer_bits)
    shared = scale_bits if layer_bits is None else None
    rules = _Rules(constants_of(scale_bits, amplification, layer_bits), amplification, shared)
    orders, steps = [input_order], list[Step]()
    for node, shape in zip(graph.nodes[1:], graph.shapes[1:], strict=True):
        step = rules.step(node, shape, [orders[i] for i in node.inputs])
        steps.append(step)
        orders.append(step.order)
    return IntegerProgram(steps=tuple(steps), input_shape=graph.input_shape, input_order=input_order)


class _Rules:
    """The rules above for one way to round constants."""

    def __init__(self, constants: Constants, amplification: int, scale_bits: int | None) -> None:
        self.constants = constants
        self.amplification = amplification
        self.scale_bits = scale_bits  # of all layers; None if each has its own

    def step(self, node: Node, shape: Shape, orders: Sequence[Order]) -> Step:
        match node:
            case Conv2d():
                order = self._bounded(node, orders[0].scaled(self.constants.bits(node)))
                return Conv2dStep(
                    name=node.name,
                    inputs=node.inputs,
                    shape=shape,
                    order=order,
                    weight=self.constants.weight(node),
                    bias=None if node.bias is None else self.constants.bias(node.bias, order),
                    stride=node.stride,
                    padding=node.padding,
                    dilation=node.dilation,
                    groups=node.groups,
                )
            case Linear():
                order = self._bounded(node, orders[0].scaled(self.constants.bits(node)))
                return LinearStep(
                    name=node.name,
                    inputs=node.inputs,
                    shape=shape,
                    order=order,
                    weight=self.constants.weight(node),
                    bias=None if node.bias is None else self.constants.bias(node.bias, order),
                )
            case AvgPool2d():
                free = node.divisor == 1
                return PoolStep(
                    name=node.name,
                    inputs=node.inputs,
                    shape=shape,
                    order=orders[0] if free else self._bounded(node, orders[0].scaled(self.constants.bits(node))),
                    kernel=node.kernel,
                    stride=node.stride,
                    padding=node.padding,
                    factor=1 if free else self.constants.pool_factor(node),
                )
            case Poly():
                order, coefficients = self.constants.polynomial(node, orders[0])
                return PolyStep(
                    name=node.name,
                    inputs=node.inputs,
                    shape=shape,
                    order=self._bounded(node, order),
                    coefficients=coefficients,
                )
            case Add() | Concat():
                order = reduce(Order.join, orders)
                factors = tuple(o.alignment(order, self.amplification) for o in orders)
                if isinstance(node, Concat):
                    return ConcatStep(name=node.name, inputs=node.inputs, shape=shape, order=order, factors=factors)
                pair = (factors[0], factors[1])
                return AddStep(name=node.name, inputs=node.inputs, shape=shape, order=order, factors=pair)
            case Flatten():
                return FlattenStep(name=node.name, inputs=node.inputs, shape=shape, order=orders[0])
        raise ParameterError(f"layer {node.name!r}: no rule for {type(node).__name__}")

    def _bounded(self, node: Node, order: Order) -> Order:
        bits = order.bits(self.amplification)
        if bits > MAX_ORDER_BITS:
            fix = "use fewer activations in a row, a lower degree, or client refresh (compile with for_refresh=True)"
            room = MAX_ORDER_BITS - order.t * self.amplification.bit_length()
            if self.scale_bits is not None and (finest := room * self.scale_bits // order.k) >= 1:
                fix += f", or scale_bits={finest} for the orders up to this layer"
            raise DepthError(
                f"layer {node.name!r}: its order (t={order.t}, k={order.k}) means integers of {bits} bits, "
                f"{bits - MAX_ORDER_BITS} more than the {MAX_ORDER_BITS} that are supported",
                fix,
            )
        return order
