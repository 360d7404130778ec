"""S5: the alignment plan. A float graph becomes exact integer arithmetic, every order and constant known beforehand.

The rules, with Delta = 2**scale_bits and a the amplification; an integer V at order (t, k) stands for
V / (a**t * 2**k):

- a weight is q = round(w * Delta), ties to even; ciphertext * weight keeps t and adds ``scale_bits`` to k;
- a constant c at order (t, k) is round(c * Delta) * a**t * 2**(k - scale_bits), which for k = l * scale_bits is the
  patent's round(c * Delta) * a**t * Delta**(l - 1);
- an average pool is the window's sum times round(Delta / divisor), k grows by ``scale_bits``; a divisor of 1 is free;
- in a polynomial of x at (t, k) the term c_i x**i is at (i t, i k + ``scale_bits``), c_0 at (0, ``scale_bits``), and
  all terms are aligned to the join of those that are there. A leading coefficient that is a whole number (1 in x * x)
  pays no scale: its term is at (D t, D k). The constants of the alignment and the coefficients become one integer
  A_i each, so that y = sum_i A_i x**i;
- a sum or a concatenation aligns all operands to (max t, max k).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import reduce

import numpy as np

from mcfhe.errors import ParameterError
from mcfhe.graph.nodes import Add, AvgPool2d, Concat, Conv2d, Flatten, Graph, Linear, Node, Poly, Shape
from mcfhe.graph.order import Order
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

WEIGHT_LIMIT = 1 << 31
CONSTANT_LIMIT = 1 << 53  # beyond it a float64 no longer tells neighbouring integers apart
MAX_ORDER_BITS = 1 << 18  # of a**t * 2**k: nearly nine thousand 30-bit limbs; stops a hostile file, not a network


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


def quantise(graph: Graph, scale_bits: int) -> Graph:
    """The graph with every constant rounded to a multiple of 2**-scale_bits, ties to even. Idempotent.

    Raises:
        ParameterError: a weight of 2**31 or more, or another constant of 2**53 or more, after scaling; a divisor so
            large that round(Delta / divisor) is 0. Names the layer.
    """
    return Graph(tuple(_quantise_node(node, scale_bits) for node in graph.nodes))


def lower(graph: Graph, scale_bits: int, amplification: int, input_order: Order) -> IntegerProgram:
    """The integer program of a graph for one order of the input.

    Args:
        graph: float constants; they are rounded here (:func:`quantise`).
        scale_bits: log2 of Delta, 1..30, shared by all layers.
        amplification: a, 1 or more.
        input_order: what the client's encryption produces, see :func:`input_orders`; k at least ``scale_bits``.

    Raises:
        ParameterError: as :func:`quantise`, or orders beyond any use (a**t * 2**k of more than 2**18 bits).
    """
    if not 1 <= scale_bits <= 30 or amplification < 1 or input_order.k < scale_bits:
        raise ParameterError(
            f"plan: scale_bits={scale_bits} (1..30), amplification={amplification} (1 or more), input order "
            f"{input_order} (k at least scale_bits)"
        )
    graph = quantise(graph, scale_bits)
    rules = _Rules(scale_bits, amplification)
    orders, steps = [input_order], list[Step]()
    for node, shape in zip(graph.nodes[1:], graph.shapes[1:], strict=True):
        step = rules.step(node, shape, [orders[i] for i in node.inputs])
        steps.append(step)
        orders.append(step.order)
    return IntegerProgram(steps=tuple(steps), input_shape=graph.input_shape, input_order=input_order)


class _Rules:
    """The rules above for one scale and amplification; constants of nodes lie on the grid of the scale."""

    def __init__(self, scale_bits: int, amplification: int) -> None:
        self.scale_bits = scale_bits
        self.amplification = amplification

    def step(self, node: Node, shape: Shape, orders: Sequence[Order]) -> Step:
        match node:
            case Conv2d():
                order = self._bounded(node, orders[0].scaled(self.scale_bits))
                return Conv2dStep(
                    name=node.name,
                    inputs=node.inputs,
                    shape=shape,
                    order=order,
                    weight=self._integers(node.weight),
                    bias=self._bias(node.bias, order),
                    stride=node.stride,
                    padding=node.padding,
                    dilation=node.dilation,
                    groups=node.groups,
                )
            case Linear():
                order = self._bounded(node, orders[0].scaled(self.scale_bits))
                weight, bias = self._integers(node.weight), self._bias(node.bias, order)
                return LinearStep(
                    name=node.name, inputs=node.inputs, shape=shape, order=order, weight=weight, bias=bias
                )
            case AvgPool2d():
                free = node.divisor == 1
                return PoolStep(
                    name=node.name,
                    inputs=node.inputs,
                    shape=shape,
                    order=orders[0] if free else self._bounded(node, orders[0].scaled(self.scale_bits)),
                    kernel=node.kernel,
                    stride=node.stride,
                    padding=node.padding,
                    factor=1 if free else pool_factor(node.divisor, self.scale_bits),
                )
            case Poly():
                return self._poly(node, shape, orders[0])
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

    def _poly(self, node: Poly, shape: Shape, x: Order) -> PolyStep:
        rows = self._integers(node.coefficients)  # [1 or C, D + 1]
        terms = polynomial_terms(rows, x, self.scale_bits)
        order = self._bounded(node, reduce(Order.join, terms.values(), Order(0, 0)))
        width = max(2, 1 + max(terms, default=0))
        factors = {i: term.alignment(order, self.amplification) for i, term in terms.items()}
        # a leading whole number carries no scale: its term is where x**D is
        drop = {i: self.scale_bits if i and term == x.times(i) else 0 for i, term in terms.items()}
        coefficients = tuple(
            tuple((int(row[i]) >> drop[i]) * factors[i] if i in terms else 0 for i in range(width)) for row in rows
        )
        return PolyStep(name=node.name, inputs=node.inputs, shape=shape, order=order, coefficients=coefficients)

    def _integers(self, values: np.ndarray) -> np.ndarray:
        integers: np.ndarray = np.rint(np.ldexp(values, self.scale_bits)).astype(np.int64)
        return integers

    def _bias(self, bias: np.ndarray | None, order: Order) -> tuple[int, ...] | None:
        if bias is None:
            return None
        factor = Order(0, self.scale_bits).alignment(order, self.amplification)
        return tuple(int(q) * factor for q in self._integers(bias))

    def _bounded(self, node: Node, order: Order) -> Order:
        bits = order.t * self.amplification.bit_length() + order.k
        if bits > MAX_ORDER_BITS:
            raise ParameterError(
                f"layer {node.name!r}: its order (t={order.t}, k={order.k}) means integers of {bits} bits, at most "
                f"{MAX_ORDER_BITS}; use fewer activations in a row or a lower degree"
            )
        return order


def polynomial_terms(rows: np.ndarray, x: Order, scale_bits: int) -> dict[int, Order]:
    """Order of each term of a polynomial whose coefficient is not 0 in every channel.

    Args:
        rows: round(c * Delta), int64 [1 or C, D + 1].
        x: order of the variable.
    """
    present = [int(i) for i in np.flatnonzero(rows.any(axis=0))]
    terms = {i: Order(0, scale_bits) if i == 0 else x.times(i).scaled(scale_bits) for i in present}
    if present and (leading := present[-1]) > 0 and not (rows[:, leading] % (1 << scale_bits)).any():
        terms[leading] = x.times(leading)
    return terms


def pool_factor(divisor: int, scale_bits: int) -> int:
    """round(Delta / divisor), ties to even."""
    return round(Fraction(1 << scale_bits, divisor))


def rounding_notes(graph: Graph, scale_bits: int) -> list[str]:
    """Pools whose factor round(Delta / divisor) / Delta is more than one percent off 1 / divisor, in words."""
    notes = []
    for node in graph.nodes:
        if isinstance(node, AvgPool2d) and node.divisor > 1:
            factor = pool_factor(node.divisor, scale_bits)
            error = abs(factor * node.divisor / (1 << scale_bits) - 1)
            if error > 0.01:
                notes.append(
                    f"{node.name} multiplies by {factor} / 2^{scale_bits} for 1 / {node.divisor}, {error:.1%} off; "
                    "more scale_bits bring it closer"
                )
    return notes


def _quantise_node(node: Node, scale_bits: int) -> Node:
    match node:
        case Conv2d() | Linear():
            bias = None if node.bias is None else _grid(node, "bias", node.bias, scale_bits, CONSTANT_LIMIT)
            return replace(node, weight=_grid(node, "weight", node.weight, scale_bits, WEIGHT_LIMIT), bias=bias)
        case Poly():
            return replace(
                node, coefficients=_grid(node, "coefficients", node.coefficients, scale_bits, CONSTANT_LIMIT)
            )
        case AvgPool2d() if pool_factor(node.divisor, scale_bits) == 0:
            raise ParameterError(
                f"layer {node.name!r}: round(2**{scale_bits} / {node.divisor}) is 0, so the pool would give only "
                f"zeros; use scale_bits of {node.divisor.bit_length()} or more, or pool in two layers"
            )
    return node


def _grid(node: Node, field: str, values: np.ndarray, scale_bits: int, limit: int) -> np.ndarray:
    # Scaling by a power of two and rounding are exact in float64, as long as nothing overflows.
    with np.errstate(over="ignore"):
        scaled = np.rint(np.ldexp(values, scale_bits))
    largest = float(np.abs(scaled).max())
    if not largest < limit:
        raise ParameterError(
            f"layer {node.name!r}: {field} {np.abs(values).max():.6g} * 2**{scale_bits} is not below "
            f"2**{limit.bit_length() - 1}; use fewer scale_bits, or normalise the layer"
        )
    rounded: np.ndarray = np.ldexp(scaled, -scale_bits)
    return rounded
