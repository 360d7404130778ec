"""The quantised network in float64 with a proved error bound, for whole test sets.

An integer program without noise computes rational numbers: value V at order (t, k) stands for V / (a**t * 2**k). Here
the same network runs on those numbers in float64. Beside them, for every image and channel, a bound e on the error
|x^ - x| of the channel's values is carried along, with m = max |x^|. Scores that the bound cannot separate are computed
again on exact integers, so that the best one is certain.

With u = 2**-53 and gamma_n = n u / (1 - n u) (N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed.):

- n products and a bias, summed in any order, fused or not (section 3.1, eq. 3.5; one more rounding for a weight that
  is no float64 itself): |y^ - y| <= sum |w| (e + gamma_{n+2} m) + gamma_{n+2} |b|, where the taps of one input channel
  share e and m. A pool is the case of equal weights, a sum of values that of weights 1;
- a polynomial by Horner's rule (section 5.1, eq. 5.3): |y^ - p(x^)| <= gamma_{2D+1} q(m) with q(x) = sum |c_i| x**i,
  and |p(x^) - p(x)| <= e q'(m + e) by the mean value theorem;
- underflow, gradual or to zero, adds at most 2**-1022 to a product; it is covered by counting every bias and
  coefficient as larger by 2**-900;
- the bounds themselves are sums of numbers >= 0 computed in float64; they are enlarged by more than their rounding.

This holds for convolutions by classical inner products, as torch computes float64 on the CPU (unfolding and a matrix
product; oneDNN and NNPACK take single precision only), not for Winograd's or Strassen's schemes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from mcfhe.graph.integers import evaluate_integers
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

_UNIT = 2.0**-53
_UNDERFLOW = 2.0**-900
_CHUNK_ELEMENTS = 1 << 18  # of the largest value, so that a chunk's values stay near the cache


@dataclass(frozen=True, eq=False, slots=True)
class PlainScores:
    """Scores of a batch without noise.

    ``scores`` float64 [batch, labels]; ``bounds`` float64 [batch, labels], |scores - true| <= bounds; ``exact`` bool
    [batch]: computed on exact integers, because the bound did not separate the best score from the others.
    """

    scores: Tensor
    bounds: Tensor
    exact: Tensor


def evaluate_plain(program: IntegerProgram, inputs: np.ndarray, amplification: int) -> PlainScores:
    """Scores of int64 ``[batch, C, H, W]`` inputs V at the program's input order; |V| < 2**53.

    ``scores.argmax(1)`` is the label that a client without noise decrypts.
    """
    runner = _Runner(program, amplification)
    count, labels = len(inputs), program.output_shape[0]
    scores, bounds = torch.empty(count, labels, dtype=torch.float64), torch.empty(count, labels, dtype=torch.float64)
    largest = max(math.prod(shape) for shape in (program.input_shape, *(step.shape for step in program.steps)))
    chunk = max(1, _CHUNK_ELEMENTS // largest)

    def run(first: int) -> None:
        part = slice(first, first + chunk)
        scores[part], bounds[part] = runner.run(inputs[part])

    # One chunk a thread instead of all threads on every operation: on a machine that has other work to do, torch's
    # threads wait for each other after each of these short operations longer than they compute.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, range(0, count, chunk)))
    finally:
        torch.set_num_threads(threads)
    exact = ~_separated(scores, bounds)
    if exact.any():
        unit = program.output_order.denominator(amplification)
        integers = evaluate_integers(program, inputs[exact.numpy()])
        scores[exact] = torch.tensor([[_ratio(v, unit) for v in row] for row in integers], dtype=torch.float64)
        bounds[exact] = scores[exact].abs() * _UNIT + 5e-324
    return PlainScores(scores, bounds, exact)


def _separated(scores: Tensor, bounds: Tensor) -> Tensor:
    """bool [batch]: is the best score above every other one whatever the errors are? Not so for NaN and infinity."""
    best = scores.argmax(dim=1, keepdim=True)
    gaps = (scores.gather(1, best) - scores) * (1 - 2.0**-50)
    apart = gaps > (bounds.gather(1, best) + bounds) * (1 + 2.0**-50)
    return apart.scatter(1, best, True).all(dim=1) & bounds.isfinite().all(dim=1) & scores.isfinite().all(dim=1)


def _gamma(n: int) -> float:
    """At least n u / (1 - n u), for n u < 1/4."""
    return n * _UNIT * (1 + 2 * n * _UNIT + 2.0**-50)


def _ratio(numerator: int, denominator: int) -> float:
    """Correctly rounded at any size. Out of float64's range it is an infinity, which no bound separates."""
    try:
        return numerator / denominator
    except OverflowError:
        return math.inf if numerator > 0 else -math.inf


@dataclass(frozen=True, eq=False, slots=True)
class _Tracked:
    """Numbers [batch, C, ...] and for each image and channel the bound on their error and on their size, [batch, C]."""

    x: Tensor
    error: Tensor

    @property
    def size(self) -> Tensor:
        return _size(self.x)


def _size(x: Tensor) -> Tensor:
    """max |x| of each image and channel, [batch, C]."""
    low, high = torch.aminmax(x.flatten(2), dim=2) if x.dim() > 2 else (x, x)
    return torch.maximum(-low, high)


_Layer = Callable[[Sequence[_Tracked]], _Tracked]


class _Runner:
    """A program with its constants divided by the orders: float64, each with a relative error of at most u."""

    def __init__(self, program: IntegerProgram, amplification: int) -> None:
        self.program = program
        self.unit = program.input_order.denominator(amplification)
        self.layers: list[_Layer] = []
        units = [self.unit]
        for step in program.steps:
            units.append(step.order.denominator(amplification))
            self.layers.append(_layer(step, [units[i] for i in step.inputs], units[-1]))

    def run(self, inputs: np.ndarray) -> tuple[Tensor, Tensor]:
        """Scores and their bounds, [batch, labels], for int64 [batch, C, H, W]."""
        x = torch.from_numpy(inputs.astype(np.float64) / self.unit)
        values = [_Tracked(x, _size(x) * _UNIT)]
        for step, layer in zip(self.program.steps, self.layers, strict=True):
            values.append(layer([values[i] for i in step.inputs]))
        return values[-1].x, values[-1].error


def _layer(step: Step, units: Sequence[int], unit: int) -> _Layer:
    """The step on numbers V / unit, from its inputs' units to its own."""
    match step:
        case Conv2dStep():
            weight = step.weight.astype(np.float64) * _ratio(units[0], unit)
            conv = partial(
                functional.conv2d,
                weight=torch.from_numpy(weight),
                bias=None,
                stride=step.stride,
                padding=step.padding,
                dilation=step.dilation,
                groups=step.groups,
            )
            sizes = torch.from_numpy(np.abs(weight).sum(axis=(2, 3), keepdims=True))
            spread = partial(functional.conv2d, weight=sizes, groups=step.groups)
            return _weighted(
                conv, lambda e: spread(e[..., None, None]).flatten(1), step.bias, unit, math.prod(weight.shape[1:])
            )
        case LinearStep():
            matrix = torch.from_numpy(step.weight.astype(np.float64) * _ratio(units[0], unit))
            linear = partial(functional.linear, weight=matrix)
            return _weighted(linear, partial(functional.linear, weight=matrix.abs()), step.bias, unit, matrix.shape[1])
        case PoolStep():
            factor, taps = _ratio(step.factor * units[0], unit), math.prod(step.kernel)
            pool = partial(
                functional.avg_pool2d,
                kernel_size=step.kernel,
                stride=step.stride,
                padding=step.padding,
                divisor_override=1,
            )
            return _weighted(lambda x: pool(x).mul_(factor), lambda e: e * (abs(factor) * taps), None, unit, taps)
        case PolyStep():
            rows = [[_ratio(c * units[0] ** i, unit) for i, c in enumerate(row)] for row in step.coefficients]
            return _polynomial(torch.tensor(rows, dtype=torch.float64))
        case AddStep() | ConcatStep():
            factors = [_ratio(factor * u, unit) for factor, u in zip(step.factors, units, strict=True)]
            return _sum(factors) if isinstance(step, AddStep) else _concat(factors)
        case FlattenStep():
            return _flatten
    raise TypeError(f"no evaluation for a step of kind {step.kind!r}")


def _weighted(
    apply: Callable[[Tensor], Tensor],
    spread: Callable[[Tensor], Tensor],
    bias: tuple[int, ...] | None,
    unit: int,
    terms: int,
) -> _Layer:
    """Sums of ``terms`` products and a bias; ``spread`` is the same with |w|, on one number a channel."""
    offset = torch.tensor([_ratio(b, unit) for b in bias or (0,)], dtype=torch.float64)
    gamma, enlarge = _gamma(terms + 2), 1 + _gamma(2 * terms + 16)

    def run(inputs: Sequence[_Tracked]) -> _Tracked:
        v = inputs[0]
        error = (spread(v.error + gamma * v.size) + gamma * (offset.abs() + _UNDERFLOW)) * enlarge
        return _Tracked(apply(v.x).add_(_per_channel(offset, v.x)), error)

    return run


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (x.dim() - 2))


def _polynomial(rows: Tensor) -> _Layer:
    """Horner's rule; ``rows`` [1 or C, D + 1]."""
    degree = rows.shape[1] - 1
    magnitudes = rows.abs() + _UNDERFLOW
    slopes = magnitudes[:, 1:] * torch.arange(1, degree + 1)
    gamma, enlarge = _gamma(2 * degree + 1), 1 + _gamma(4 * degree + 16)

    def run(inputs: Sequence[_Tracked]) -> _Tracked:
        v = inputs[0]
        size = v.size
        error = _horner(slopes, size + v.error) * v.error + gamma * _horner(magnitudes, size)
        return _Tracked(_horner(rows, v.x), error * enlarge)

    return run


def _horner(rows: Tensor, x: Tensor) -> Tensor:
    columns = [_per_channel(column, x) for column in rows.unbind(1)]
    if len(columns) == 1:
        return columns[0].expand_as(x)
    y = x * columns[-1]
    for column in columns[-2:0:-1]:
        y.add_(column).mul_(x)
    return y.add_(columns[0])


def _scaled(v: _Tracked, factor: float) -> _Tracked:
    if factor == 1:
        return v
    return _Tracked(v.x * factor, (v.error + v.size * _gamma(2)) * (abs(factor) * (1 + _gamma(16))) + _UNDERFLOW)


def _sum(factors: Sequence[float]) -> _Layer:
    def run(inputs: Sequence[_Tracked]) -> _Tracked:
        v, w = (_scaled(value, factor) for value, factor in zip(inputs, factors, strict=True))
        return _Tracked(v.x + w.x, (v.error + w.error + (v.size + w.size) * _UNIT) * (1 + _gamma(16)))

    return run


def _concat(factors: Sequence[float]) -> _Layer:
    def run(inputs: Sequence[_Tracked]) -> _Tracked:
        parts = [_scaled(value, factor) for value, factor in zip(inputs, factors, strict=True)]
        return _Tracked(torch.cat([v.x for v in parts], dim=1), torch.cat([v.error for v in parts], dim=1))

    return run


def _flatten(inputs: Sequence[_Tracked]) -> _Tracked:
    x = inputs[0].x.flatten(1)
    return _Tracked(x, inputs[0].error.repeat_interleave(x.shape[1] // inputs[0].error.shape[1], dim=1))
