"""The quantised network in float64 with a proved error bound, for whole test sets.

An integer program without noise computes rational numbers: value V at order (t, k) stands for V / (a**t * 2**k). Here
the same network runs on those numbers in float64, and with every number x^ a bound e on |x^ - x| is carried along.
Scores that the bound cannot separate are computed again on exact integers, so the order of the two best is certain.

With u = 2**-53 and gamma_n = n u / (1 - n u) (N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed.):

- n products and a bias, summed in any order, fused or not (section 3.1, eq. 3.5; one more factor 1 + delta for a weight
  that is no float64 itself): |y^ - y| <= sum |w| (e + gamma_{n+2} |x^|) + gamma_{n+2} |b|. Costs a second convolution,
  with |w|. A pool is the case of equal weights, a sum the case of two weights of 1;
- a polynomial by Horner's rule (section 5.1, eq. 5.3): |y^ - p(x^)| <= gamma_{2D+1} q(|x^|) with q = sum |c_i| x**i, and
  |p(x^) - p(x)| <= e q'(|x^| + e) by the mean value theorem;
- underflow, gradual or to zero, adds at most 2**-1022 to a product; it is covered by counting every bias and
  coefficient as larger by 2**-900;
- the bounds are sums of numbers >= 0, computed with a relative error below gamma_{n+8}; they are enlarged by that.

This holds for convolutions by classical inner products, as torch computes float64 on the CPU (unfolding and a matrix
product), not for Winograd's or Strassen's schemes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from mcfhe.graph.integers import evaluate_integers
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

_UNIT = 2.0**-53
_UNDERFLOW = 2.0**-900
_CHUNK_ELEMENTS = 1 << 19  # of the largest value, so that a chunk's values stay near the cache


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

    The label ``scores.argmax(1)`` is that of the exact integers, as a client without noise would decrypt them.
    """
    runner = _Runner(program, amplification)
    count, labels = len(inputs), program.output_shape[0]
    scores, bounds = torch.empty(count, labels, dtype=torch.float64), torch.empty(count, labels, dtype=torch.float64)
    sizes = [int(np.prod(shape)) for shape in (program.input_shape, *(step.shape for step in program.steps))]
    chunk = max(1, _CHUNK_ELEMENTS // max(sizes))
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
        for first in range(0, count, chunk):
            part = slice(first, first + chunk)
            scores[part], bounds[part] = runner.run(inputs[part])
    exact = ~_separated(scores, bounds)
    if exact.any():
        denominator = program.output_order.denominator(amplification)
        integers = evaluate_integers(program, inputs[exact.numpy()])
        # int / int is correctly rounded at any size
        scores[exact] = torch.tensor([[v / denominator for v in row] for row in integers], dtype=torch.float64)
        bounds[exact] = scores[exact].abs() * _UNIT + 5e-324
    return PlainScores(scores, bounds, exact)


def _separated(scores: Tensor, bounds: Tensor) -> Tensor:
    """bool [batch]: is the best score above every other one whatever the errors are? Not so for NaN and infinity."""
    best = scores.argmax(dim=1, keepdim=True)
    gaps = (scores.gather(1, best) - scores) * (1 - 2.0**-50)
    apart = gaps > (bounds.gather(1, best) + bounds) * (1 + 2.0**-50)
    return apart.scatter(1, best, True).all(dim=1) & bounds.isfinite().all(dim=1)


def _gamma(n: int) -> float:
    # twice n u / (1 - n u) less the rounding of this line: for n u < 1/4 it is above the exact value
    return n * _UNIT * (1 + 2 * n * _UNIT + 2.0**-50)


def _float(numerator: int, denominator: int) -> float:
    return float(Fraction(numerator, denominator))


class _Runner:
    """A program with its constants divided by the orders: float64, each with a relative error of at most u."""

    def __init__(self, program: IntegerProgram, amplification: int) -> None:
        self.program = program
        self.unit = program.input_order.denominator(amplification)
        self.layers: list[_Layer] = []
        orders = [program.input_order]
        for step in program.steps:
            self.layers.append(_layer(step, [orders[i] for i in step.inputs], amplification))
            orders.append(step.order)

    def run(self, inputs: np.ndarray) -> tuple[Tensor, Tensor]:
        x = torch.from_numpy(inputs.astype(np.float64) / self.unit)
        values = [(x, x.abs() * _UNIT)]
        for step, layer in zip(self.program.steps, self.layers, strict=True):
            values.append(layer.run([values[i] for i in step.inputs]))
        return values[-1]
