"""Tighter bounds through squares: a linear layer, a quadratic activation and a linear layer as one quadratic form.

Interval arithmetic bounds every output of the first layer by itself, takes the activation at the worst end of each and
sums those worst ends in the second layer. No image attains all of them at once. Here the three are one form in the
input u of the first layer. With u = m + r e, |e_i| <= 1 (the centre and radius of u's intervals), v = L u + b the first
layer, v = y + L r e with y = L m + b, and weights w of the second layer,

    sum_j w_j (A0 + A1 v_j + A2 v_j**2)
        = sum_j w_j (A0 + A1 y_j + A2 y_j**2) + sum_i g_i r_i e_i + sum_ik Q_ik r_i r_k e_i e_k,
    g = L^T (w (A1 + 2 A2 y)),  Q = L^T diag(w A2) L,

which is affine arithmetic with products of noise symbols kept: |e_i e_k| <= 1, and 0 <= e_i**2 <= 1 on the diagonal.
What is gained is the cancellation between the w_j inside g and Q, before absolute values are taken. Zero padding is
exact: pixels outside the map have m = r = 0, and outputs that see different parts of the border are bounded one by one.

Q is never stored: for one offset between two pixels at a time it is a map, made by matrix products and summed up.

**Rounding.** All of it is float64, on numbers divided by powers of two so that none overflows. The result is a sum of
monomials in w, A, L, m and r, each with n < 2**26 roundings at most (products, sums in any order, conversions of the
integers), so it is off by at most 2**26 2**-53 (1 + 2**-26) times the sum of the monomials' sizes, and that sum is at
most 4 sum_j |w_j| (|A0| + |A1| v + |A2| v**2) with v >= |v_j|. Bounds are widened by 2**-24 of the latter, and then
outwards to 20 significant bits, so that the order in which a machine adds hardly ever shows in them. A constant so much
smaller than the others that it becomes 0 is covered by 2**-900 of the unit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from mcfhe.graph.intervals import Intervals
from mcfhe.graph.nodes import window_count
from mcfhe.graph.steps import Conv2dStep, FlattenStep, IntegerProgram, LinearStep, PolyStep, PoolStep

MAX_WORK = 1 << 30  # multiply-adds spent on one layer; larger ones keep their intervals
_SLACK = 2.0**-24
_DIGITS = 20
_UNDERFLOW = 2.0**-900
_BATCH_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class _Sandwich:
    """Values and steps: ``source`` -> first -> poly -> (pool) -> (flatten) -> second."""

    source: int
    first: Conv2dStep | LinearStep
    poly: PolyStep
    pool: PoolStep | None
    flat: bool
    second: Conv2dStep | LinearStep


def quadratic_bounds(program: IntegerProgram, index: int, known: Sequence[Intervals]) -> Intervals | None:
    """Intervals of value ``index + 1``, the output of step ``index``; None where this bound does not apply.

    Args:
        program: of which.
        index: a step, Conv2d or linear.
        known: intervals of all values up to ``index``.
    """
    found = _match(program, index)
    if found is None:
        return None
    shape = program.input_shape if found.source == 0 else program.steps[found.source - 1].shape
    form = _Form.of(found, known[found.source], shape)
    return None if form is None else form.bounds()


def _match(program: IntegerProgram, index: int) -> _Sandwich | None:
    second = program.steps[index]
    if not isinstance(second, Conv2dStep | LinearStep) or getattr(second, "groups", 1) != 1:
        return None
    chain = [program.steps[i - 1] if i else None for i in _sources(program, index)]
    steps = iter(chain)
    step, flat, pool = next(steps, None), False, None
    if isinstance(step, FlattenStep):
        step, flat = next(steps, None), True
    if isinstance(step, PoolStep):
        pool, step = step, next(steps, None)
        if pool.kernel != pool.stride or any(pool.padding):
            return None
    if not isinstance(step, PolyStep) or len(step.coefficients[0]) != 3:
        return None
    first = next(steps, None)
    if not isinstance(first, Conv2dStep | LinearStep) or getattr(first, "groups", 1) != 1:
        return None
    if getattr(first, "dilation", (1, 1)) != (1, 1) or getattr(second, "dilation", (1, 1)) != (1, 1):
        return None
    if pool is not None and any(s % k for s, k in zip(step.shape[1:], pool.kernel, strict=True)):
        return None
    return _Sandwich(first.inputs[0], first, step, pool, flat, second)


def _sources(program: IntegerProgram, index: int) -> itertools.chain[int]:
    """Values read on the way back from a step, each the first input of the one before."""

    def walk(value: int) -> list[int]:
        found = []
        while value:
            found.append(value)
            value = program.steps[value - 1].inputs[0]
        return found

    return itertools.chain(walk(program.steps[index].inputs[0]))


def _exponent(values: np.ndarray) -> int:
    """Bits of the largest of some Python ints."""
    return max((abs(int(v)).bit_length() for v in values.flat), default=0)


def _ratio(value: int, exponent: int) -> float:
    """value / 2**exponent, correctly rounded."""
    return float(Fraction(value, 1 << exponent)) if exponent >= 0 else float(value << -exponent)


@dataclass(frozen=True, eq=False, slots=True)
class _Form:
    """The quadratic forms of one sandwich, in floats.

    Attributes:
        kernel: L, float64 [M, C, kh, kw].
        stride: of L on its map.
        centre, radius: m and r / 2**scale of each channel, [C].
        offset: bias of L / 2**scale, [M].
        terms: A_i 2**(i scale) / 2**unit, [M, 3].
        unit: the exponent of results.
        weights: of the second layer over outputs of L: [O, M, h, w], local to a window or of the whole map.
        places: for each window: (first row, first column) of u, and which rows and columns of u and of v are there.
        bias: of the second layer.
    """

    kernel: np.ndarray
    stride: tuple[int, int]
    centre: np.ndarray
    radius: np.ndarray
    offset: np.ndarray
    terms: np.ndarray
    unit: int
    weights: np.ndarray
    places: tuple[tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]], ...]  # (rows, columns) of (u, v)
    bias: tuple[int, ...]

    @staticmethod
    def of(parts: _Sandwich, u: Intervals, shape: tuple[int, ...]) -> _Form | None:
        first, second, poly = parts.first, parts.second, parts.poly
        kernel = first.weight.astype(np.float64)
        if isinstance(first, LinearStep):
            kernel, stride, padding = kernel[:, :, None, None], (1, 1), (0, 0)
            size, inner = (1, 1), (1, 1)
        else:
            stride, padding = first.stride, first.padding
            size, inner = (shape[1], shape[2]), (first.shape[1], first.shape[2])
        weights, step, margin = _second_weights(parts, inner)
        window = (weights.shape[2], weights.shape[3])
        axes = [
            _axis_patterns(
                *(inner[a], size[a], window[a], step[a], margin[a], kernel.shape[2 + a], stride[a], padding[a])
            )
            for a in (0, 1)
        ]
        places = tuple(((rows[0], columns[0]), (rows[1], columns[1])) for rows in axes[0] for columns in axes[1])
        outputs, channels = len(weights), kernel.shape[1]
        taps = kernel.shape[2] * kernel.shape[3]
        work = len(places) * outputs * math.prod(window) * len(kernel) * channels**2 * taps * (taps + 1) // 2
        if work > MAX_WORK:
            return None
        scale = max(_exponent(u.lower), _exponent(u.upper)) - 1
        centre = np.array([_ratio(int(a) + int(b), scale + 1) for a, b in zip(u.lower, u.upper, strict=True)])
        radius = np.array([_ratio(int(b) - int(a), scale + 1) for a, b in zip(u.lower, u.upper, strict=True)])
        rows = poly.coefficients * (len(kernel) if len(poly.coefficients) == 1 else 1)
        unit = max(abs(c).bit_length() + i * scale for row in rows for i, c in enumerate(row))
        terms = np.array([[_ratio(c, unit - i * scale) for i, c in enumerate(row)] for row in rows])
        offset = np.array([_ratio(b, scale) for b in first.bias or (0,) * len(kernel)])
        bias = second.bias or (0,) * len(second.weight)
        return _Form(kernel, stride, centre, radius, offset, terms, unit, weights, places, bias)

    def bounds(self) -> Intervals:
        """Of each output, over all windows."""
        ends = [self._window(*place) for place in self.places]
        lower = np.min([low for low, _ in ends], axis=0)
        upper = np.max([high for _, high in ends], axis=0)
        pairs = zip(lower, upper, self.bias, strict=True)
        return Intervals.of([(_outwards(a, self.unit, -1) + b, _outwards(c, self.unit, 1) + b) for a, c, b in pairs])

    def _window(
        self, u: tuple[np.ndarray, np.ndarray], v: tuple[np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """(lower, upper) / 2**unit of every output, [O], where only the rows and columns given as true are there."""
        inside = np.outer(*u).astype(np.float64)
        w = (self.weights * np.outer(*v)).transpose(0, 2, 3, 1)  # [O, h, w, M]
        y = self._first(inside)
        a0, a1, a2 = self.terms.T
        constant = np.einsum("ohwm,hwm->o", w, a0 + a1 * y + a2 * y * y)
        spread = self._linear(w * (a1 + 2 * a2 * y), inside)
        cross, low, high = self._squares(w * a2, inside)
        size = np.abs(self.kernel).sum(axis=(2, 3)) @ (np.abs(self.centre) + self.radius) + np.abs(self.offset)
        terms = np.abs(self.terms)
        slack = _SLACK * (np.abs(w).sum(axis=(1, 2)) @ (terms[:, 0] + terms[:, 1] * size + terms[:, 2] * size**2))
        slack += _UNDERFLOW
        return constant - spread - cross + low - slack, constant + spread + cross + high + slack

    def _slices(self, tap: tuple[int, int], size: tuple[int, int]) -> tuple[slice, slice]:
        """Where outputs of ``size`` rows and columns read the map of u under one tap."""
        rows, columns = (slice(t, t + s * (n - 1) + 1, s) for t, s, n in zip(tap, self.stride, size, strict=True))
        return rows, columns

    def _taps(self) -> list[tuple[int, int]]:
        return list(itertools.product(range(self.kernel.shape[2]), range(self.kernel.shape[3])))

    def _first(self, inside: np.ndarray) -> np.ndarray:
        """y = L m + b, [h, w, M]."""
        size = (self.weights.shape[2], self.weights.shape[3])
        y: np.ndarray = np.broadcast_to(self.offset, (*size, len(self.kernel))).copy()
        for tap in self._taps():
            y += inside[self._slices(tap, size)][..., None] * (self.kernel[:, :, tap[0], tap[1]] @ self.centre)
        return y

    def _linear(self, g: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """sum_i |(L^T g)_i| r_i for every output, [O]."""
        total = np.zeros((len(g), *inside.shape, len(self.centre)))
        for tap in self._taps():
            rows, columns = self._slices(tap, (g.shape[1], g.shape[2]))
            total[:, rows, columns] += g @ self.kernel[:, :, tap[0], tap[1]]
        found: np.ndarray = (np.abs(total).sum(axis=(1, 2), where=inside[..., None] > 0)) @ self.radius
        return found

    def _squares(self, g: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """sum over i != k of |Q_ik| r_i r_k, and the sums of negative and of positive Q_ii r_i**2, [O] each."""
        outputs, channels = len(g), len(self.centre)
        cross, low, high = (np.zeros(outputs) for _ in range(3))
        products = np.outer(self.radius, self.radius)
        step = max(1, _BATCH_BYTES // (8 * inside.size * channels**2))
        height, width = self.kernel.shape[2:]
        for down, right in itertools.product(range(height), range(1 - width, width)):
            if down == 0 and right < 0:
                continue
            both = inside * _shifted(inside, down, right)
            for start in range(0, outputs, step):
                part = slice(start, start + step)
                q = self._offset_map(g[part], inside.shape, (down, right))
                if (down, right) != (0, 0):
                    sizes = np.abs(q).sum(axis=(1, 2), where=both[..., None, None] > 0)
                    cross[part] += 2 * np.einsum("ock,ck->o", sizes, products)
                    continue
                diagonal = np.einsum("ohwcc->ohwc", q)
                where = both[..., None] > 0
                high[part] += np.maximum(diagonal, 0).sum(axis=(1, 2), where=where) @ self.radius**2
                low[part] += np.minimum(diagonal, 0).sum(axis=(1, 2), where=where) @ self.radius**2
                off = np.abs(q).sum(axis=(1, 2), where=both[..., None, None] > 0)
                cross[part] += np.einsum("ock,ck->o", off, products * (1 - np.eye(channels)))
        return cross, low, high

    def _offset_map(self, g: np.ndarray, size: tuple[int, ...], offset: tuple[int, int]) -> np.ndarray:
        """Q between pixel i, channel c and pixel i + offset, channel k: [O, rows, columns, C, C]."""
        channels = len(self.centre)
        height, width = self.kernel.shape[2:]
        if (height, width) == (1, 1) == g.shape[1:3]:  # a matrix: no table of all pairs of inputs
            matrix = self.kernel[:, :, 0, 0]
            form: np.ndarray = np.matmul(matrix.T, g[:, 0, 0, :, None] * matrix)
            return form[:, None, None]
        q = np.zeros((len(g), *size, channels, channels))
        for row, column in self._taps():
            other = (row + offset[0], column + offset[1])
            if not (0 <= other[0] < height and 0 <= other[1] < width):
                continue
            pairs = self.kernel[:, :, row, column, None] * self.kernel[:, None, :, other[0], other[1]]
            rows, columns = self._slices((row, column), (g.shape[1], g.shape[2]))
            q[:, rows, columns] += (g @ pairs.reshape(len(pairs), -1)).reshape(*g.shape[:3], channels, channels)
        return q


def _shifted(inside: np.ndarray, down: int, right: int) -> np.ndarray:
    """inside[i + offset], 0 beyond the edges."""
    result = np.zeros_like(inside)
    height, width = inside.shape
    if down < height and abs(right) < width:
        rows, columns = height - down, width - abs(right)
        left, start = max(0, -right), max(0, right)
        result[:rows, left : left + columns] = inside[down:, start : start + columns]
    return result


def _second_weights(parts: _Sandwich, inner: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
    """Weights over outputs of the first layer, [O, M, h, w], with the stride and padding of their windows there."""
    weight = parts.second.weight.astype(np.float64)
    pool = parts.pool
    kernel = (1, 1) if pool is None else pool.kernel
    if isinstance(parts.second, LinearStep):
        # a vector is read as one pixel of many channels, unless it is a flattened map
        size = (inner[0] // kernel[0], inner[1] // kernel[1]) if parts.flat else (1, 1)
        weight = weight.reshape(len(weight), -1, *size)
        stride, padding = (1, 1), (0, 0)
    else:
        stride, padding = parts.second.stride, parts.second.padding
    if pool is not None:
        weight = np.repeat(np.repeat(weight, kernel[0], axis=2), kernel[1], axis=3) * pool.factor
    return weight, (stride[0] * kernel[0], stride[1] * kernel[1]), (padding[0] * kernel[0], padding[1] * kernel[1])


def _axis_patterns(
    inner: int, size: int, window: int, step: int, margin: int, kernel: int, stride: int, padding: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The different pairs (which pixels of u, which of v are on their maps) of all windows along one axis."""
    found: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
    for place in range(window_count(inner, window, step, margin)):
        v = np.arange(window) + place * step - margin
        u = np.arange((window - 1) * stride + kernel) + v[0] * stride - padding
        pair = ((u >= 0) & (u < size), (v >= 0) & (v < inner))
        found.setdefault(pair[0].tobytes() + pair[1].tobytes(), pair)
    return list(found.values())


def _outwards(value: float, unit: int, sign: int) -> int:
    """value * 2**unit away from zero or to it, never inwards, with about _DIGITS significant bits."""
    exact = Fraction(value) * (Fraction(2) ** unit)
    grid = 1 << max(0, math.frexp(value)[1] + unit - _DIGITS)
    return (math.ceil(exact / grid) if sign > 0 else math.floor(exact / grid)) * grid
