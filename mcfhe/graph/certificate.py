"""Proved bounds: interval arithmetic in Python integers over an integer program, and quadratic forms where asked for.

Every value gets an interval per channel (per entry after a flatten) that holds for every input within the given
intervals. Convolutions and linear layers take each weight at the worse end of its input's interval, which for
independent inputs is attained; zero padding is exact, since every pattern of taps that fall on padding is bounded
by itself; the range of a polynomial is exact. What is lost is only what neighbouring values know of each other;
:mod:`mcfhe.graph.quadratic` wins a part of that back where a linear layer, a quadratic activation and a linear layer
follow each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from mcfhe.errors import ParameterError
from mcfhe.graph.intervals import Intervals
from mcfhe.graph.nodes import window_count
from mcfhe.graph.polynomial import polynomial_range
from mcfhe.graph.quadratic import quadratic_bounds
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


@dataclass(frozen=True, eq=False, slots=True)
class LayerBound:
    """Bounds of one value of the program.

    ``plain_bits`` is what :attr:`bits` would be by interval arithmetic alone, in this layer and all before it.
    """

    name: str
    kind: str
    intervals: Intervals
    plain_bits: int

    @property
    def bits(self) -> int:
        """Bit length of the largest |V|."""
        return self.intervals.bound.bit_length()


@dataclass(frozen=True, eq=False, slots=True)
class Certificate:
    """Bounds of every value of one integer program, proved for all inputs within the input's intervals.

    ``layers[0]`` is the input, ``layers[i]`` the output of step i - 1, the last one the scores.
    """

    layers: tuple[LayerBound, ...]
    guard_bits: int

    @property
    def output_bound(self) -> int:
        """|V| <= output_bound for every score."""
        return self.layers[-1].intervals.bound

    @property
    def output_bounds(self) -> tuple[tuple[int, int], ...]:
        """(lower, upper) for each score."""
        last = self.layers[-1].intervals
        return tuple((int(a), int(b)) for a, b in zip(last.lower, last.upper, strict=True))

    @property
    def required_product(self) -> int:
        """The product of the moduli must be greater than this: 2 * output_bound * 2**guard_bits."""
        return max(1, 2 * self.output_bound) << self.guard_bits

    @property
    def required_bits(self) -> int:
        """Bit length of :attr:`required_product`."""
        return self.required_product.bit_length()

    @property
    def widest(self) -> LayerBound:
        """The layer with the largest proved |V|, the last such one."""
        return max(reversed(self.layers), key=lambda layer: layer.intervals.bound)

    def __str__(self) -> str:
        width = max(len(layer.name) for layer in self.layers)
        lines = [
            f"{layer.name:<{width}}  {layer.kind:<10}  |V| < 2^{layer.bits}"
            + (f", 2^{layer.plain_bits} by intervals alone" if layer.plain_bits > layer.bits else "")
            for layer in self.layers
        ]
        lines.append(
            f"output |V| <= {_compact(self.output_bound)}; widest layer {self.widest.name!r} with {self.widest.bits} "
            f"bits; the moduli's product must exceed 2 * bound * 2^{self.guard_bits}, {self.required_bits} bits"
        )
        return "\n".join(lines)


#: How bounds may be computed: interval arithmetic, or that and quadratic forms, whichever is less for each channel.
METHODS = ("interval", "quadratic")


def certify(program: IntegerProgram, inputs: Intervals, guard_bits: int, method: str = "interval") -> Certificate:
    """Bounds for all inputs with lower[c] <= V <= upper[c] in channel c, by one of ``METHODS``."""
    if inputs.lower.shape != (program.input_shape[0],) or inputs.upper.shape != inputs.lower.shape:
        raise ParameterError(f"certificate: {inputs.lower.shape} intervals for {program.input_shape[0]} channels")
    if method not in METHODS:
        raise ParameterError(f"bounds = {method!r}: choose one of {', '.join(METHODS)}")
    shapes: list[tuple[int, ...]] = [program.input_shape]
    plain, known = [inputs], [inputs]
    for index, step in enumerate(program.steps):
        sizes = [shapes[i] for i in step.inputs]
        plain.append(_propagate(step, [plain[i] for i in step.inputs], sizes))
        found = plain[-1]
        if method == "quadratic":
            found = _propagate(step, [known[i] for i in step.inputs], sizes)
            tighter = quadratic_bounds(program, index, known)
            found = found if tighter is None else found.intersection(tighter)
        known.append(found)
        shapes.append(step.shape)
    names = [("input", "input"), *((step.name, step.kind) for step in program.steps)]
    layers = [
        LayerBound(name, kind, intervals, wide.bound.bit_length())
        for (name, kind), intervals, wide in zip(names, known, plain, strict=True)
    ]
    return Certificate(tuple(layers), guard_bits)


def _propagate(step: Step, inputs: Sequence[Intervals], shapes: Sequence[tuple[int, ...]]) -> Intervals:
    x, shape = inputs[0], shapes[0]
    match step:
        case Conv2dStep():
            return _conv(step, x, (shape[1], shape[2]))
        case LinearStep():
            return _offset(_grouped(np.maximum(step.weight, 0), np.minimum(step.weight, 0), x), step.bias)
        case PoolStep():
            counts = _window_taps(step, (shape[1], shape[2]))
            ends = [x.scaled(step.factor * count) for count in (min(counts), max(counts))]
            return Intervals(np.minimum(ends[0].lower, ends[1].lower), np.maximum(ends[0].upper, ends[1].upper))
        case PolyStep():
            rows = step.coefficients * (len(x.lower) if len(step.coefficients) == 1 else 1)
            known = cache(polynomial_range)  # after a flatten many entries share an interval
            return Intervals.of([known(row, int(a), int(b)) for row, a, b in zip(rows, x.lower, x.upper, strict=True)])
        case AddStep():
            first, second = (value.scaled(factor) for value, factor in zip(inputs, step.factors, strict=True))
            return Intervals(first.lower + second.lower, first.upper + second.upper)
        case ConcatStep():
            parts = [value.scaled(factor) for value, factor in zip(inputs, step.factors, strict=True)]
            return Intervals(
                np.concatenate([part.lower for part in parts]), np.concatenate([part.upper for part in parts])
            )
        case FlattenStep():
            repeat = step.shape[0] // len(x.lower)
            return Intervals(np.repeat(x.lower, repeat), np.repeat(x.upper, repeat))
    raise TypeError(f"no bounds for a step of kind {step.kind!r}")


def _grouped(positive: np.ndarray, negative: np.ndarray, x: Intervals, groups: int = 1) -> Intervals:
    """Of sum_c q[o, c] * x[c] for weights with q+ = ``positive`` and q- = ``negative``, int64 [O, C / groups]: positive
    weights at one end of the interval, negative ones at the other."""
    ends = []
    for first, second in ((x.lower, x.upper), (x.upper, x.lower)):
        parts = zip(
            np.split(positive.astype(object), groups),
            np.split(negative.astype(object), groups),
            np.split(first, groups),
            np.split(second, groups),
            strict=True,
        )
        ends.append(np.concatenate([p @ a + n @ b for p, n, a, b in parts]))
    return Intervals(ends[0], ends[1])


def _offset(x: Intervals, bias: tuple[int, ...] | None) -> Intervals:
    if bias is None:
        return x
    constants = np.array(bias, object)
    return Intervals(x.lower + constants, x.upper + constants)


def _conv(step: Conv2dStep, x: Intervals, size: tuple[int, int]) -> Intervals:
    """All positions of a channel share its interval, so weights are first summed over the taps on the map: once for
    every pattern of such taps, by sign. |q| < 2**31 leaves room for 2**32 taps in int64."""
    rows, columns = (
        _tap_patterns(size[axis], step.weight.shape[2 + axis], step.stride[axis], step.padding[axis], dilation)
        for axis, dilation in enumerate(step.dilation)
    )
    if (x.lower <= 0).all() and (x.upper >= 0).all():
        # one more tap then only widens the interval
        rows, columns = _maximal(rows), _maximal(columns)
    found = [
        _grouped(
            np.einsum("ocij,i,j->oc", np.maximum(step.weight, 0), row, column),
            np.einsum("ocij,i,j->oc", np.minimum(step.weight, 0), row, column),
            x,
            step.groups,
        )
        for row in rows
        for column in columns
    ]
    hull = Intervals(
        np.minimum.reduce([part.lower for part in found]), np.maximum.reduce([part.upper for part in found])
    )
    return _offset(hull, step.bias)


def _tap_patterns(size: int, kernel: int, stride: int, padding: int, dilation: int) -> np.ndarray:
    """The different sets of taps that lie on the map, over all windows of one axis: int64 0/1 [patterns, kernel]."""
    starts = np.arange(window_count(size, kernel, stride, padding, dilation)) * stride - padding
    positions = starts[:, None] + np.arange(kernel) * dilation
    return np.unique((positions >= 0) & (positions < size), axis=0).astype(np.int64)


def _maximal(patterns: np.ndarray) -> np.ndarray:
    """Those that are no subset of another one; the patterns are distinct."""
    subset = (patterns[:, None] <= patterns[None]).all(axis=2)
    kept: np.ndarray = patterns[subset.sum(axis=1) == 1]
    return kept


def _window_taps(step: PoolStep, size: tuple[int, int]) -> list[int]:
    """How many pixels of the map the windows of a pool hold: the numbers that occur."""
    rows, columns = (
        _tap_patterns(size[axis], step.kernel[axis], step.stride[axis], step.padding[axis], 1).sum(axis=1)
        for axis in (0, 1)
    )
    return [int(r) * int(c) for r in rows for c in columns]


def _compact(value: int) -> str:
    return str(value) if value < 10**12 else f"2^{math.log2(value):.2f}"
