"""Polynomials of low degree in place of an activation: weighted least squares on the inputs that it really sees.

The weight is a mixture: the histogram of the inputs, which decides how well the network does on average, and a small
share of the uniform distribution on the range seen, without which a polynomial may do anything in the tails.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.polynomial import chebyshev, polynomial
from torch import Tensor

from mcfhe.errors import ParameterError

BINS = 1024
UNIFORM_SHARE = 0.05
MAX_DEGREE = 8  # least squares in float64 on the Chebyshev basis; more is never worth its order
_EXACT = 2.0**-20  # errors below are counted as this one, so that "exact" has a finite number of bits
_LINEAR_IS_ENOUGH = 2.0**-10


class InputRange:
    """Smallest and largest input of each row (all channels together, or one row a channel)."""

    def __init__(self, per_channel: bool) -> None:
        self.per_channel = per_channel
        self.lower = torch.empty(0)
        self.upper = torch.empty(0)

    def see(self, x: Tensor) -> None:
        """``x``: ``[batch, C, ...]``."""
        rows = as_rows(x, self.per_channel)
        lower, upper = rows.amin(1), rows.amax(1)
        if self.lower.numel():
            lower, upper = torch.minimum(lower, self.lower), torch.maximum(upper, self.upper)
        self.lower, self.upper = lower, upper


class Histogram:
    """Counts ``[rows, BINS]`` of inputs between the ends of an :class:`InputRange`."""

    def __init__(self, seen: InputRange) -> None:
        self.seen = seen
        self.width = (seen.upper - seen.lower).clamp(min=torch.finfo(torch.float64).tiny)
        self.counts = torch.zeros(len(seen.lower), BINS, dtype=torch.float64)

    def see(self, x: Tensor) -> None:
        rows = as_rows(x, self.seen.per_channel)
        place = ((rows - self.seen.lower[:, None]) * (BINS / self.width)[:, None]).long().clamp(0, BINS - 1)
        place += BINS * torch.arange(len(rows))[:, None]
        self.counts += place.flatten().bincount(minlength=self.counts.numel()).view_as(self.counts)


@dataclass(frozen=True, eq=False, slots=True)
class Fit:
    """A fitted polynomial.

    Attributes:
        coefficients: float64 ``[rows, degree + 1]``, lowest power first.
        error: root mean square of p - f over the inputs seen, as a share of the standard deviation of f over them.
        largest: largest |p - f| on the range seen.
    """

    coefficients: np.ndarray
    error: float
    largest: float

    @property
    def degree(self) -> int:
        return int(self.coefficients.shape[1]) - 1


def fit(function: Callable[[Tensor], Tensor], histogram: Histogram, degrees: range | tuple[int, ...]) -> Fit:
    """The best of ``degrees`` by bits of accuracy for each order paid.

    A polynomial of degree D multiplies all orders before it by D. With a relative error e it is worth log2(1 / e) bits,
    so the degree with the most log2(1 / e) / D is taken. Degree 1 is taken only where it is all but exact (e below
    2**-10): a network whose activations are linear is linear.

    Args:
        function: elementwise on ``[1, rows, n]``, row by row.
        histogram: of its inputs.
        degrees: to choose from, ascending.
    """
    samples = _Samples.of(function, histogram)
    best: tuple[float, Fit] | None = None
    for degree in degrees:
        found = samples.fit(degree)
        if degree == 1 and len(degrees) > 1 and found.error > _LINEAR_IS_ENOUGH:
            continue
        worth = -math.log2(max(found.error, _EXACT)) / degree
        if best is None or worth > best[0]:
            best = (worth, found)
    if best is None:
        raise ParameterError("degree: none to choose from")
    return best[1]


@dataclass(frozen=True, eq=False, slots=True)
class _Samples:
    """f at the centres of all bins of all rows, and their weights."""

    lower: np.ndarray  # [rows]
    upper: np.ndarray
    centres: np.ndarray  # [rows, BINS] in -1..1
    values: np.ndarray
    seen: np.ndarray  # shares, each row sums to 1
    rows: np.ndarray  # share of each row

    @staticmethod
    def of(function: Callable[[Tensor], Tensor], histogram: Histogram) -> _Samples:
        lower, upper = histogram.seen.lower, histogram.seen.upper
        inner = (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS
        points = lower[:, None] + (upper - lower)[:, None] * inner
        with torch.no_grad():
            values = function(points[None])[0].double().numpy()
        counts = histogram.counts.numpy()
        total = counts.sum(1, keepdims=True)
        centres = np.broadcast_to(2 * inner.numpy() - 1, values.shape)
        return _Samples(lower.numpy(), upper.numpy(), centres, values, counts / total, (total / total.sum())[:, 0])

    def fit(self, degree: int) -> Fit:
        rows, squares, spread, largest = [], 0.0, 0.0, 0.0
        for i, y in enumerate(self.values):
            weights = (1 - UNIFORM_SHARE) * self.seen[i] + UNIFORM_SHARE / BINS
            series = chebyshev.chebfit(self.centres[i], y, degree, w=np.sqrt(weights))
            misfit = chebyshev.chebval(self.centres[i], series) - y
            squares += self.rows[i] * float(self.seen[i] @ misfit**2)
            spread += self.rows[i] * float(self.seen[i] @ (y - self.seen[i] @ y) ** 2)
            largest = max(largest, float(np.abs(misfit).max()))
            rows.append(_monomials(series, float(self.lower[i]), float(self.upper[i])))
        error = math.sqrt(squares / spread) if spread > 0 else (0.0 if squares == 0 else math.inf)
        return Fit(np.stack(rows), error, largest)


def _monomials(series: np.ndarray, lower: float, upper: float) -> np.ndarray:
    """Coefficients in x of a Chebyshev series in t = (2 x - lower - upper) / (upper - lower)."""
    if upper <= lower:  # one point: a constant
        return np.array([chebyshev.chebval(0.0, series), *(0.0 for _ in series[1:])])
    scale = 2 / (upper - lower)
    inner = np.array([-(lower + upper) / 2 * scale, scale])
    result = np.zeros(1)
    for c in chebyshev.cheb2poly(series)[::-1]:  # Horner's rule on polynomials
        result = polynomial.polyadd(polynomial.polymul(result, inner), [c])
    out = np.zeros(len(series))
    out[: len(result)] = result[: len(series)]
    return out


def as_rows(x: Tensor, per_channel: bool) -> Tensor:
    """float64 ``[rows, n]`` of ``[batch, C, ...]``, on the CPU."""
    x = x.detach().double().cpu()
    return x.transpose(0, 1).flatten(1) if per_channel else x.reshape(1, -1)
