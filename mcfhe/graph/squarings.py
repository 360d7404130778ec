"""Polynomials of degree 3 and 4 as sums of squares of polynomials: the algebra, in exact fractions.

Over RNS-CKKS a square of a ciphertext is the one product there is, and what it costs is the key switch behind it. Two
forms, both of depth 2; a polynomial is (a0, a1, a2, a3, a4), the constant first:

- **composition**, a4 != 0: with p = a3 / (2 a4) and z = x^2 + p x the polynomial a4 z^2 + b z has the coefficients of
  x^4, x^3 and, for b = a2 - a4 p^2, x^2. What it lacks of a1 is r = a1 - b p:

      a4 x^4 + a3 x^3 + a2 x^2 + a1 x + a0 = (a4 z^2 + b z + a0) + r x

  Two squares and a sum. A shift of z changes neither p nor r, so there is no freedom in it: r = 0 exactly for the
  quartics that are a quadratic of a quadratic;
- **difference**, for every t != 0: with B = a4 x^2 + a3 x + a2

      a4 x^4 + a3 x^3 + a2 x^2 + a1 x + a0 = ((B / t + t x^2) / 2)^2 - ((B / t - t x^2) / 2)^2 + a1 x + a0

  Four squares, but three key switches: the last two squares are added before theirs. A cubic needs no fewer than
  three: of two squares the second has degree 4 or at most 2, never 3. With three, ((q + x)^2 - q^2) for a quadratic q,
  a value after one square is added to one before it, whose scales agree in no bit; to align them costs
  ``ALIGNMENT_BITS`` that the next square doubles, nearly a limb for each activation. So the fourth square is the
  cheaper one.

**Condition.** The composition divides by a4. Where a4 is small beside a3, p is large and a4 z^2, b z and r x are large
numbers with a small sum; where it is small beside everything, a4 needs many bits of scale for what it adds. The
difference divides by t alone, a free number: if t^2 is |B| over x^2 at the end of the range, the factors B / t and
t x^2 are equal there, and both squares at most |B x^2|, which the polynomial's own terms add up to. So the composition
is taken where it costs no more than two bits (:func:`composition_holds`), the difference for everything else, cubics
and a4 = 0 included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import log2

REACH = 4  # |x| at which the terms of an activation are weighed: a normalised network's values are a few units
_LOSS = 4  # the composition's terms may be so much larger than the polynomial's: two bits
_SHARE = Fraction(1, 1 << 10)  # of all terms, that a4 x^4 must have for the composition
_FAR = 16
_NOTHING = Fraction(1, 1 << 32)

Row = Sequence[Fraction]


@dataclass(frozen=True, slots=True)
class Composition:
    """z = ``inner`` (x); the polynomial is ``outer`` (z) + ``rest`` (x). Coefficients, the constant first."""

    inner: tuple[Fraction, Fraction, Fraction]
    outer: tuple[Fraction, Fraction, Fraction]
    rest: tuple[Fraction, Fraction]


@dataclass(frozen=True, slots=True)
class Difference:
    """The polynomial is ``plus`` (x)^2 - ``minus`` (x)^2 + ``rest`` (x)."""

    plus: tuple[Fraction, Fraction, Fraction]
    minus: tuple[Fraction, Fraction, Fraction]
    rest: tuple[Fraction, Fraction]


def composition(row: Row) -> Composition:
    """Of five coefficients, the last not 0."""
    a0, a1, a2, a3, a4 = row
    p = a3 / (2 * a4)
    b = a2 - a4 * p * p
    zero, one = Fraction(0), Fraction(1)
    return Composition((zero, p, one), (a0, b, a4), (zero, a1 - b * p))


def difference(row: Row, t: Fraction) -> Difference:
    """Of five coefficients, ``t`` not 0."""
    a0, a1, *quotient = row
    halves = [c / (2 * t) for c in quotient]
    plus, minus = (halves[0], halves[1], halves[2] + t / 2), (halves[0], halves[1], halves[2] - t / 2)
    return Difference(plus, minus, (a0, a1))


def composition_holds(row: Row) -> bool:
    """Is a4 x^4 at |x| = REACH a share of 2^-10 or more of all terms, and are those of the composition at most four
    times as large as the polynomial's own?"""
    if not row[4]:
        return False
    terms = _largest(row[1:], REACH) * REACH
    form = composition(row)
    z = _largest(form.inner, REACH)
    composed = _largest(form.outer[1:], z) * z + _largest(form.rest, REACH)
    return abs(row[4]) * REACH**4 >= _SHARE * terms and composed <= _LOSS * terms


def balance(rows: Sequence[Row]) -> Fraction:
    """A power of two t under which t x^2 and B / t are about equal at |x| = REACH, for the row where B is largest."""
    largest = max(_largest(row[2:], REACH) for row in rows)
    return Fraction(2) ** round(log2(largest / REACH**2) / 2)


def negligible(coefficient: Fraction, power: int, row: Row) -> bool:
    """Is ``coefficient`` x^``power`` nothing beside the polynomial ``row``: below 2^-32 of all terms at |x| = 16?

    Least squares leave such coefficients where there should be 0, as that of x^3 for an even function, and so does
    the rounding of what cancels; that of the others to float32 in a model is 2^8 times as much.
    """
    return bool(abs(coefficient) * _FAR**power <= _NOTHING * _largest(row, _FAR))


def _largest(row: Row, x: Fraction | int) -> Fraction:
    """sum_i |a_i| x^i, by Horner's rule."""
    total = Fraction(0)
    for a in reversed(row):
        total = total * x + abs(a)
    return total
