"""Float constants as exact integers: by the letter, with one scale for all layers, or with a scale for every layer.

Both answer the same questions of the plan. An integer V at order (t, k) stands for V / (a**t * 2**k).

:class:`LetterConstants`, with Delta = 2**scale_bits:

- a weight is q = round(w * Delta), ties to even;
- a constant c at order (t, k) is round(c * Delta) * a**t * 2**(k - scale_bits), which for k = l * scale_bits is the
  patent's round(c * Delta) * a**t * Delta**(l - 1);
- an average pool is the window's sum times round(Delta / divisor);
- in a polynomial of x at (t, k) the term c_i x**i is at (i t, i k + ``scale_bits``), c_0 at (0, ``scale_bits``), and
  all terms are aligned to the join of those that are there. A leading coefficient that is a whole number (1 in x * x)
  pays no scale: its term is at (D t, D k).

:class:`LayerConstants`, with s bits of scale for a layer:

- a weight is q = round(w * 2**s);
- a constant c at order (t, k) is round(c * a**t * 2**k), ties to even, of the float64 value c and in exact integers:
  a bias loses nothing that its order can hold, however small the scales are;
- an average pool is the window's sum times round(2**s / divisor);
- a polynomial of degree D is at (D t, D k + s), with s = 0 if its leading coefficients are whole; a lower term is
  aligned first and rounded then, A_i = round(c_i * a**((D - i) t) * 2**((D - i) k + s)).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import reduce
from typing import Protocol

import numpy as np

from mcfhe.errors import ParameterError
from mcfhe.graph.nodes import Add, AvgPool2d, Concat, Conv2d, Flatten, Graph, Linear, Node, Poly
from mcfhe.graph.order import Order

WEIGHT_LIMIT = 1 << 31
CONSTANT_LIMIT = 1 << 53  # beyond it a float64 no longer tells neighbouring integers apart
MAX_LAYER_BITS = 48

Rows = tuple[tuple[int, ...], ...]


class Constants(Protocol):
    """How the constants of a graph become integers."""

    def quantised(self, node: Node) -> Node:
        """The node with every constant rounded as far as that does not depend on an order. Idempotent."""

    def bits(self, node: Node) -> int:
        """What the weights of the node add to k."""

    def weight(self, node: Conv2d | Linear) -> np.ndarray:
        """int64, |q| < 2**31, of a quantised node."""

    def bias(self, values: np.ndarray, order: Order) -> tuple[int, ...]:
        """Integers at ``order`` of the bias of a quantised node."""

    def pool_factor(self, node: AvgPool2d) -> int:
        """What the sum over a window is multiplied by; the divisor is above 1."""

    def polynomial(self, node: Poly, x: Order) -> tuple[Order, Rows]:
        """Order of a quantised polynomial of a value at order ``x``, and the integers A_i, ``[1 or C][degree + 1]``."""


@dataclass(frozen=True, slots=True)
class LetterConstants:
    """One scale for all layers."""

    scale_bits: int
    amplification: int = 1

    def quantised(self, node: Node) -> Node:
        bits = self.scale_bits
        match node:
            case Conv2d() | Linear():
                bias = None if node.bias is None else _grid(node, "bias", node.bias, bits, CONSTANT_LIMIT)
                return replace(node, weight=_grid(node, "weight", node.weight, bits, WEIGHT_LIMIT), bias=bias)
            case Poly():
                return replace(node, coefficients=_grid(node, "coefficients", node.coefficients, bits, CONSTANT_LIMIT))
            case AvgPool2d():
                _check_pool(node, bits)
        return node

    def bits(self, node: Node) -> int:
        return self.scale_bits

    def weight(self, node: Conv2d | Linear) -> np.ndarray:
        return _integers(node.weight, self.scale_bits)

    def bias(self, values: np.ndarray, order: Order) -> tuple[int, ...]:
        factor = Order(0, self.scale_bits).alignment(order, self.amplification)
        return tuple(int(q) * factor for q in _integers(values, self.scale_bits))

    def pool_factor(self, node: AvgPool2d) -> int:
        return pool_factor(node.divisor, self.scale_bits)

    def polynomial(self, node: Poly, x: Order) -> tuple[Order, Rows]:
        rows = _integers(node.coefficients, self.scale_bits)  # [1 or C, D + 1]
        terms = polynomial_terms(rows, x, self.scale_bits)
        order = reduce(Order.join, terms.values(), Order(0, 0))
        width = max(2, 1 + max(terms, default=0))
        factors = {i: term.alignment(order, self.amplification) for i, term in terms.items()}
        # a leading whole number carries no scale: its term is where x**D is
        drop = {i: self.scale_bits if i and term == x.times(i) else 0 for i, term in terms.items()}
        return order, tuple(
            tuple((int(row[i]) >> drop[i]) * factors[i] if i in terms else 0 for i in range(width)) for row in rows
        )


@dataclass(frozen=True, slots=True)
class LayerConstants:
    """``layer_bits`` gives a scale to every layer of :func:`scaled_constants`, 0..48 bits each."""

    layer_bits: Mapping[str, int]
    amplification: int = 1

    def quantised(self, node: Node) -> Node:
        match node:
            case Conv2d() | Linear():
                return replace(node, weight=_grid(node, "weight", node.weight, self.bits(node), WEIGHT_LIMIT))
            case Poly():
                bits, rows = self.bits(node), node.coefficients.copy()
                degree = _degree(rows)
                rows[:, degree] = _grid(node, "coefficients", rows[:, degree], bits, CONSTANT_LIMIT)
                return replace(node, coefficients=rows)
            case AvgPool2d() if node.divisor > 1:
                _check_pool(node, self.bits(node))
        return node

    def bits(self, node: Node) -> int:
        if _scaled(node) is None:
            return 0
        try:
            return self.layer_bits[node.name]
        except KeyError:
            raise ParameterError(
                f"weight_bits: layer {node.name!r} has weights, but no bits are given for it"
            ) from None

    def weight(self, node: Conv2d | Linear) -> np.ndarray:
        return _integers(node.weight, self.bits(node))

    def bias(self, values: np.ndarray, order: Order) -> tuple[int, ...]:
        denominator = order.denominator(self.amplification)
        return tuple(round(Fraction(float(value)) * denominator) for value in values)

    def pool_factor(self, node: AvgPool2d) -> int:
        return pool_factor(node.divisor, self.bits(node))

    def polynomial(self, node: Poly, x: Order) -> tuple[Order, Rows]:
        rows = node.coefficients
        degree = _degree(rows)
        order = x.times(degree).scaled(self.bits(node))
        factors = [x.times(i).alignment(order, self.amplification) for i in range(degree + 1)]
        padding = (0,) * (1 - degree)  # a step has a coefficient of x, if only 0
        return order, tuple(
            (*(round(Fraction(float(c)) * f) for c, f in zip(row, factors, strict=False)), *padding) for row in rows
        )


def scaled_constants(graph: Graph) -> dict[str, np.ndarray]:
    """The constants of each layer that ciphertexts are multiplied by at the cost of a scale, by name of the layer.

    Weights of convolutions and linear layers, 1 / divisor of pools, leading coefficients that are not whole numbers.
    """
    found = ((node.name, _scaled(node)) for node in graph.nodes)
    return {name: values for name, values in found if values is not None}


def relative_bits(graph: Graph, precision: int) -> dict[str, int]:
    """A scale for each layer under which its largest weight w has 2**(precision - 1) <= |w| 2**s < 2**precision."""
    bits = {}
    for name, values in scaled_constants(graph).items():
        exponent = int(np.frexp(np.abs(values).max())[1])
        bits[name] = min(max(precision - exponent, 0), MAX_LAYER_BITS)
    return bits


def without_common_factors(graph: Graph, layer_bits: Mapping[str, int]) -> dict[str, int]:
    """The least scales with the same weights: powers of two that divide all integers of a layer are dead scale."""
    bits = {}
    for name, values in scaled_constants(graph).items():
        scaled = np.rint(np.ldexp(values, layer_bits[name]))
        low = 0
        while low < layer_bits[name] and scaled.any() and not (np.ldexp(scaled, -low - 1) % 1).any():
            low += 1
        bits[name] = layer_bits[name] - low
    return bits


def branch_bits(
    graph: Graph, scale_bits: int, layer_bits: Mapping[str, int], fixed: Collection[str] = ()
) -> dict[str, int]:
    """Scales under which sums and concatenations multiply fewest values to align their operands.

    An operand that is lower than the join only by bits of scale is aligned by 2**d, one multiplication for each of its
    values. Where it comes from a layer whose scale nobody else reads, with flattens and plain window sums in between,
    that layer takes the d bits, unless it is among ``fixed``: its weights are rounded finer, at no cost, as the sum's
    order is what it was.
    """
    bits = dict(layer_bits)
    readers = [sum(index in node.inputs for node in graph.nodes) for index in range(len(graph.nodes))]
    for node in graph.nodes:
        if not isinstance(node, Add | Concat):
            continue
        orders = _orders(graph, scale_bits, bits)
        target = reduce(Order.join, (orders[i] for i in node.inputs))
        for source in dict.fromkeys(node.inputs):
            maker, gap = _branch_end(graph, source, readers), target.k - orders[source].k
            if (
                maker is None
                or maker.name in fixed
                or gap == 0
                or orders[source].t != target.t
                or node.inputs.count(source) > 1
            ):
                continue
            more = bits[maker.name] + gap
            fits = more <= MAX_LAYER_BITS and float(np.abs(maker.weight).max()) * 2.0**more < WEIGHT_LIMIT // 2
            if fits:
                bits[maker.name] = more
    return bits


def _branch_end(graph: Graph, index: int, readers: Sequence[int]) -> Conv2d | Linear | None:
    """The layer with a scale that alone decides the order of a value which nobody else reads."""
    node = graph.nodes[index]
    if readers[index] != 1:
        return None
    if isinstance(node, Conv2d | Linear):
        return node
    if isinstance(node, Flatten) or (isinstance(node, AvgPool2d) and node.divisor == 1):
        return _branch_end(graph, node.inputs[0], readers)
    return None


def _orders(graph: Graph, scale_bits: int, layer_bits: Mapping[str, int]) -> list[Order]:
    """Of every value, for an input at order (1, scale_bits)."""
    constants = LayerConstants(layer_bits)
    orders = [Order(1, scale_bits)]
    for node in graph.nodes[1:]:
        joined = reduce(Order.join, (orders[i] for i in node.inputs))
        degree = _degree(node.coefficients) if isinstance(node, Poly) else 1
        orders.append(joined.times(degree).scaled(constants.bits(node)))
    return orders


def polynomial_terms(rows: np.ndarray, x: Order, scale_bits: int) -> dict[int, Order]:
    """Order by the letter of each term of a polynomial whose coefficient is not 0 in every channel.

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
    """round(2**scale_bits / divisor), ties to even."""
    return round(Fraction(1 << scale_bits, divisor))


def rounding_notes(graph: Graph, constants: Constants) -> list[str]:
    """Pools whose factor round(2**s / divisor) / 2**s is more than one percent off 1 / divisor, in words."""
    notes = []
    for node in graph.nodes:
        if isinstance(node, AvgPool2d) and node.divisor > 1:
            bits, factor = constants.bits(node), constants.pool_factor(node)
            error = abs(factor * node.divisor / (1 << bits) - 1)
            if error > 0.01:
                notes.append(
                    f"{node.name} multiplies by {factor} / 2^{bits} for 1 / {node.divisor}, {error:.1%} off; "
                    "more scale_bits bring it closer"
                )
    return notes


def _scaled(node: Node) -> np.ndarray | None:
    match node:
        case Conv2d() | Linear():
            return node.weight
        case AvgPool2d() if node.divisor > 1:
            return np.array([1 / node.divisor])
        case Poly():
            degree = _degree(node.coefficients)
            leading: np.ndarray = node.coefficients[:, degree]
            # a constant polynomial has nothing to be aligned to: its value is all it pays for
            return None if degree and (leading == np.rint(leading)).all() else leading
    return None


def _degree(rows: np.ndarray) -> int:
    used = np.flatnonzero(rows.any(axis=0))
    return int(used[-1]) if used.size else 0


def _integers(values: np.ndarray, bits: int) -> np.ndarray:
    integers: np.ndarray = np.rint(np.ldexp(values, bits)).astype(np.int64)
    return integers


def _check_pool(node: AvgPool2d, bits: int) -> None:
    if pool_factor(node.divisor, bits) == 0:
        raise ParameterError(
            f"layer {node.name!r}: round(2**{bits} / {node.divisor}) is 0, so the pool would give only "
            f"zeros; use scale_bits of {node.divisor.bit_length()} or more, or pool in two layers"
        )


def _grid(node: Node, field: str, values: np.ndarray, scale_bits: int, limit: int) -> np.ndarray:
    # Scaling by a power of two and rounding are exact in float64, as long as nothing overflows.
    with np.errstate(over="ignore"):
        scaled = np.rint(np.ldexp(values, scale_bits))
    largest = float(np.abs(scaled).max())
    if not largest < limit:
        raise ParameterError(_too_large(node, field, float(np.abs(values).max()), scale_bits, limit.bit_length() - 1))
    rounded: np.ndarray = np.ldexp(scaled, -scale_bits)
    return rounded


def _too_large(node: Node, field: str, largest: float, scale_bits: int, limit_bits: int) -> str:
    """By how much a constant is too large, and the finest scale at which it is not."""
    exponent = int(np.frexp(largest)[1])  # largest < 2**exponent
    finest = limit_bits - exponent
    fix = (
        f"use at most {finest} bits of scale there" if finest >= 1 else "no scale is coarse enough, normalise the layer"
    )
    return (
        f"layer {node.name!r}: {field} {largest:.6g} * 2**{scale_bits} is not below 2**{limit_bits}, "
        f"{max(1, exponent + scale_bits - limit_bits)} bits too large; {fix}"
    )
