"""Exact extremes of an integer polynomial over an integer interval, in Python integers only."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def evaluate(coefficients: Sequence[int], x: int) -> int:
    """sum_i coefficients[i] * x**i, by Horner's rule."""
    y = 0
    for c in reversed(coefficients):
        y = y * x + c
    return y


def polynomial_range(coefficients: Sequence[int], lower: int, upper: int) -> tuple[int, int]:
    """(min, max) of the polynomial over the integers lower..upper; both are attained.

    Between two neighbouring real critical points the polynomial is monotone, so over the integers it is extreme at an
    end of the interval or at an integer next to a critical point. :func:`_turning_points` finds those without any
    real arithmetic; for a quadratic they are the two integers around the vertex.
    """
    if lower > upper:
        raise ValueError(f"empty interval {lower}..{upper}")
    values = [evaluate(coefficients, x) for x in (lower, *_turning_points(coefficients, lower, upper), upper)]
    return min(values), max(values)


def _turning_points(coefficients: Sequence[int], lower: int, upper: int) -> list[int]:
    """Ascending integers in lower..upper that cut the interval into cells of width 1 and cells without a turn inside.

    By induction over the degree: between neighbouring turning points of the derivative (and the ends) the derivative
    is monotone, or the cell has width 1 and needs no look inside. Where its signs at the ends of a monotone cell
    differ it has one root there, bisection finds the unit cell around it, and both ends of that are turning points.
    """
    degree = max((i for i, c in enumerate(coefficients) if c), default=0)
    if degree < 2 or upper - lower < 2:
        return []
    derivative = [i * coefficients[i] for i in range(1, degree + 1)]
    if degree == 2:
        # 2 A_2 x + A_1 = 0 has its root in the unit cell that starts at the floor of -A_1 / (2 A_2)
        cell = -derivative[0] // derivative[1]
        return [x for x in (cell, cell + 1) if lower <= x <= upper]
    points: set[int] = set()
    cuts = sorted({lower, *_turning_points(derivative, lower, upper), upper})
    for left, right in pairwise(cuts):
        points.update((left, right))
        start, end = evaluate(derivative, left), evaluate(derivative, right)
        if (start < 0 < end) or (end < 0 < start):
            while right - left > 1:
                middle = (left + right) // 2
                if (evaluate(derivative, middle) < 0) == (start < 0):
                    left = middle
                else:
                    right = middle
            points.update((left, right))
    return sorted(points)
