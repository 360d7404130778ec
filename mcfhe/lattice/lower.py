"""A float graph as a lattice program: exact integer constants, a level for every value, ring steps where planned.

The rules, for a value whose slots hold real numbers times a scale s:

- weights become integers round(w * 2^b) and the scale s * 2^b: no plaintext polynomial, no rescaling of its own;
- a constant c is round(c * s), added to the first component only: a constant is the same number in every slot, and in
  NTT form the same residue at every place;
- a quadratic activation is the tensor square, at scale s^2 (times 2^b for a leading coefficient that is not whole);
  other degrees are squares and sums already (:mod:`mcfhe.graph.passes.sums_of_squares`);
- a sum brings its operands to one scale by whole factors, within 2^-13 of it, and to the fewest limbs of them. If only
  some of them have three components, the others get a third one of 0, by a tensor square without a square:
  (0, f, 0) are the coefficients of f x;
- a linear polynomial that a sum reads has no scale of its own: its coefficients are rounded at the scale of the sum,
  as (c0, c1, 0) of such a tensor square. Beside a square that scale is far above x's, so they lose nothing.

:class:`Placement` says after which nodes a ciphertext is rescaled and relinearised. A ciphertext of three components is
as good as one of two for everything but the next square, so that may be far behind the square (lazy relinearisation).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import log2

import numpy as np

from mcfhe.errors import ParameterError, UnsupportedLayerError
from mcfhe.graph.nodes import Add, AvgPool2d, Concat, Conv2d, Flatten, Graph, Linear, Node, Poly, Shape
from mcfhe.graph.order import Level, Order
from mcfhe.graph.passes.sums_of_squares import NAME as SUMS_OF_SQUARES
from mcfhe.graph.steps import (
    AddStep,
    ConcatStep,
    Conv2dStep,
    DropStep,
    FlattenStep,
    IntegerProgram,
    LinearStep,
    PoolStep,
    RelineariseStep,
    RescaleStep,
    Ring,
    Step,
    TensorSquareStep,
)
from mcfhe.modular.constants import LayerConstants, pool_factor

ALIGNMENT_BITS = 13  # a sum's operands are brought to one scale within 2^-13 of it
SCALE_BITS = (-100, 900)  # least and most of any value's scale, so that ratios fit floats; rings hold less than 881


@dataclass(frozen=True, slots=True)
class Placement:
    """What happens to a ciphertext after one node: rescalings, then as many limbs as are left, then relinearisation."""

    rescales: int
    limbs: int
    relinearise: bool


def square_terms(node: Poly, bits: int, scale: Fraction) -> tuple[tuple[int, int, int], ...]:
    """Integers (A0, A1, A2) of each channel for a value at ``scale``; the result is at scale^2 * 2^bits.

    UnsupportedLayerError for a degree other than 2, ParameterError for a leading coefficient that is rounded to 0.
    """
    rows = node.coefficients
    if rows.shape[1] != 3:
        raise UnsupportedLayerError(
            f"layer {node.name!r}: degree {rows.shape[1] - 1}; a lattice program squares, and the pass "
            f"{SUMS_OF_SQUARES} makes squares of other degrees"
        )
    _check_leading(node)
    return tuple(
        (
            round(Fraction(float(row[0])) * scale**2 * 2**bits),
            round(Fraction(float(row[1])) * scale * 2**bits),
            round(Fraction(float(row[2])) * 2**bits),
        )
        for row in rows
    )


def alignment(scales: Sequence[Fraction], rounded: Collection[int] = ()) -> tuple[Fraction, tuple[int, ...]]:
    """A scale and whole factors that bring every operand to it, each within 2^-ALIGNMENT_BITS of its value.

    Exactly, where the scales are powers of two apart. Otherwise factors must be about 2^ALIGNMENT_BITS or more, so the
    scale is above the largest by the bits (:func:`raised_bits`) that are missing. ``rounded``: operands whose factor
    will be multiplied by numbers that are not whole, so that it is never exact.
    """
    target = max(scales)
    inexact = [s for i, s in enumerate(scales) if i in rounded or not _power_of_two(target / s)]
    if inexact:
        target *= 1 << raised_bits(log2(target / max(inexact)))
    return target, tuple(round(target / scale) for scale in scales)


def raised_bits(gap: float) -> int:
    """Bits by which a sum's scale is above its largest operand's, if the next one, which is not a power of two below,
    is ``gap`` bits below. Scales are near powers of two, whole gaps far from where this changes."""
    return max(0, ALIGNMENT_BITS - round(gap))


def is_linear(node: Node) -> bool:
    """Is it a polynomial of degree 1, by its number of coefficients? Sums apply those that they read; no other layer
    may."""
    return isinstance(node, Poly) and node.coefficients.shape[1] == 2


def is_square(node: Node) -> bool:
    """Is it a polynomial that takes a tensor square, with three components behind it?"""
    return isinstance(node, Poly) and not is_linear(node)


def _check_leading(node: Poly) -> None:
    if not node.coefficients[:, -1].any():
        raise ParameterError(f"layer {node.name!r}: its leading coefficient is rounded to 0; give it more weight_bits")


def _power_of_two(ratio: Fraction) -> bool:
    return ratio.denominator == 1 and ratio.numerator & (ratio.numerator - 1) == 0


def lower_lattice(
    graph: Graph,
    layer_bits: Mapping[str, int],
    ring: Ring,
    input_scale: Fraction,
    placements: Mapping[int, Placement],
) -> IntegerProgram:
    """The program of a quantised graph over ``ring``.

    Args:
        graph: constants rounded to the grids of ``layer_bits`` (:func:`mcfhe.modular.plan.quantise`).
        placements: by index of a node; a value that is squared must have been relinearised.

    Raises:
        UnsupportedLayerError: an activation that is not quadratic, or a linear one that no sum reads.
        ParameterError: a placement after no node, one that leaves no limb or relinearises two components, a square of
            three components, a concatenation of two and three, or a scale outside 2^:data:`SCALE_BITS`.
    """
    if not all(0 < index < len(graph.nodes) for index in placements):
        raise ParameterError(f"placements after nodes {sorted(placements)}: there are 1..{len(graph.nodes) - 1}")
    if is_linear(graph.nodes[-1]):
        raise UnsupportedLayerError(f"layer {graph.nodes[-1].name!r}: degree 1, and no sum reads it")
    builder = _Builder(graph, layer_bits, ring, Level(len(ring.moduli), 2, input_scale))
    for index, (node, shape) in enumerate(zip(graph.nodes, graph.shapes, strict=True)):
        if index:
            builder.add(node, shape)
        if index in placements:
            builder.place(node, shape, placements[index])
    return IntegerProgram(
        steps=tuple(builder.steps),
        input_shape=graph.input_shape,
        input_order=_order(builder.levels[0], graph.nodes[0].name),
        ring=ring,
        levels=tuple(builder.levels),
    )


def _order(level: Level, name: str) -> Order:
    """Of a value of layer ``name``. Every level passes here before anything else is computed from it."""
    least, most = SCALE_BITS
    if not Fraction(2) ** least <= level.scale <= 2**most:
        bits = log2(level.scale.numerator) - log2(level.scale.denominator)  # the ratio may not fit a float
        raise ParameterError(
            f"layer {name!r}: a scale of 2^{bits:.0f} is outside 2^{least} to 2^{most}; rescale "
            f"{'more' if bits > 0 else 'less'} often before it"
        )
    return Order(0, max(0, round(log2(level.scale))))


class _Builder:
    def __init__(self, graph: Graph, layer_bits: Mapping[str, int], ring: Ring, level: Level) -> None:
        self.constants = LayerConstants(layer_bits)
        self.ring = ring
        self.levels = [level]
        self.steps: list[Step] = []
        self.value = [0]  # of each node
        self._linear: dict[int, Poly] = {}  # polynomials of degree 1 by index of their node

    def add(self, node: Node, shape: Shape) -> None:
        sources = tuple(self.value[i] for i in node.inputs)
        if isinstance(node, Poly) and is_linear(node):
            _check_leading(node)
            self._linear[len(self.value)] = node
            self.value.append(sources[0])  # until the sum that reads it
            return
        if isinstance(node, Add):
            sources = self._aligned(node, shape, sources)
        elif source := next((i for i in node.inputs if i in self._linear), None):
            raise UnsupportedLayerError(
                f"layer {self._linear[source].name!r}: degree 1, read by {node.name!r}; only a sum applies a linear "
                f"polynomial, the pass {SUMS_OF_SQUARES} makes a layer of others"
            )
        self.value.append(self._push(self._step(node, shape, sources, [self.levels[v] for v in sources])))

    def _aligned(self, node: Add, shape: Shape, sources: tuple[int, ...]) -> tuple[int, ...]:
        """A sum's operands: with linear polynomials applied, and all with as many components, at one scale then."""
        levels = [self.levels[v] for v in sources]
        linear = {slot: self._linear[i] for slot, i in enumerate(node.inputs) if i in self._linear}
        three = linear or 3 in {level.components for level in levels}
        lifted = {slot for slot, level in enumerate(levels) if slot in linear or (three and level.components == 2)}
        if not lifted:
            return sources
        scale, factors = alignment([level.scale for level in levels], linear)
        limbs = min(level.limbs for level in levels)
        made = []
        for slot, (value, factor) in enumerate(zip(sources, factors, strict=True)):
            if slot not in lifted:
                made.append(value)
                continue
            rows: tuple[tuple[int, int, int], ...] = ((0, factor, 0),)
            name = node.name
            if slot in linear:
                name, ratio = linear[slot].name, scale / levels[slot].scale
                exact = [[Fraction(float(c)) for c in row[:2]] for row in linear[slot].coefficients]
                rows = tuple((round(c0 * scale), round(c1 * ratio), 0) for c0, c1 in exact)
            level = Level(limbs, 3, scale)
            step = TensorSquareStep(
                name=name, inputs=(value,), shape=shape, order=_order(level, name), coefficients=rows
            )
            made.append(self._push((step, level)))
        return tuple(made)

    def place(self, node: Node, shape: Shape, placement: Placement) -> None:
        for _ in range(placement.rescales):
            level = self._last(node)
            if level.limbs < 2:
                raise ParameterError(f"layer {node.name!r}: no limb left to rescale by")
            scale = level.scale / self.ring.moduli[level.limbs - 1]
            self._ring_step(RescaleStep, node, shape, Level(level.limbs - 1, level.components, scale))
        level = self._last(node)
        if placement.limbs > level.limbs:
            raise ParameterError(f"layer {node.name!r}: {placement.limbs} limbs after it, {level.limbs} are left")
        if placement.relinearise and level.components != 3:
            raise ParameterError(f"layer {node.name!r}: nothing to relinearise, its ciphertexts have two components")
        if placement.limbs < level.limbs:
            dropped = Level(placement.limbs, level.components, level.scale)
            self._ring_step(DropStep, node, shape, dropped, limbs=placement.limbs)
            level = dropped
        if placement.relinearise:
            self._ring_step(RelineariseStep, node, shape, Level(level.limbs, 2, level.scale))

    def _last(self, node: Node) -> Level:
        return self.levels[self.value[-1]]

    def _ring_step(self, kind: type[Step], node: Node, shape: Shape, level: Level, **fields: int) -> None:
        source = (self.value[-1],)
        step = kind(name=node.name, inputs=source, shape=shape, order=_order(level, node.name), **fields)
        self.value[-1] = self._push((step, level))

    def _push(self, made: tuple[Step, Level]) -> int:
        self.steps.append(made[0])
        self.levels.append(made[1])
        return len(self.steps)

    def _step(self, node: Node, shape: Shape, inputs: tuple[int, ...], levels: Sequence[Level]) -> tuple[Step, Level]:
        x = levels[0]
        match node:
            case Conv2d() | Linear():
                level = Level(x.limbs, x.components, x.scale * 2 ** self.constants.bits(node))
                bias = None if node.bias is None else _rounded(node.bias, level.scale)
                weight, order = self.constants.weight(node), _order(level, node.name)
                if isinstance(node, Linear):
                    return LinearStep(
                        name=node.name, inputs=inputs, shape=shape, order=order, weight=weight, bias=bias
                    ), level
                return Conv2dStep(
                    name=node.name,
                    inputs=inputs,
                    shape=shape,
                    order=order,
                    weight=weight,
                    bias=bias,
                    stride=node.stride,
                    padding=node.padding,
                    dilation=node.dilation,
                    groups=node.groups,
                ), level
            case AvgPool2d():
                bits = 0 if node.divisor == 1 else self.constants.bits(node)
                level = Level(x.limbs, x.components, x.scale * 2**bits)
                return PoolStep(
                    name=node.name,
                    inputs=inputs,
                    shape=shape,
                    order=_order(level, node.name),
                    kernel=node.kernel,
                    stride=node.stride,
                    padding=node.padding,
                    factor=1 if node.divisor == 1 else pool_factor(node.divisor, bits),
                ), level
            case Poly():
                if x.components != 2:
                    raise ParameterError(f"layer {node.name!r}: a square of three components; relinearise before it")
                bits = self.constants.bits(node)
                level = Level(x.limbs, 3, x.scale**2 * 2**bits)
                return TensorSquareStep(
                    name=node.name,
                    inputs=inputs,
                    shape=shape,
                    order=_order(level, node.name),
                    coefficients=square_terms(node, bits, x.scale),
                ), level
            case Add() | Concat():
                if len({level.components for level in levels}) != 1:
                    raise ParameterError(f"layer {node.name!r}: joins values of two and of three components")
                scale, factors = alignment([level.scale for level in levels])
                level = Level(min(level.limbs for level in levels), x.components, scale)
                if isinstance(node, Concat):
                    return ConcatStep(
                        name=node.name, inputs=inputs, shape=shape, order=_order(level, node.name), factors=factors
                    ), level
                return AddStep(
                    name=node.name,
                    inputs=inputs,
                    shape=shape,
                    order=_order(level, node.name),
                    factors=(factors[0], factors[1]),
                ), level
            case Flatten():
                return FlattenStep(name=node.name, inputs=inputs, shape=shape, order=_order(x, node.name)), x
        raise UnsupportedLayerError(f"layer {node.name!r}: the lattice scheme has no rule for {type(node).__name__}")


def _rounded(values: np.ndarray, scale: Fraction) -> tuple[int, ...]:
    return tuple(round(Fraction(float(value)) * scale) for value in values)
