"""Search for the tuple of lanes whose integers are all of an expected form, one limb at a time.

Residues of k limbs determine an integer modulo their product P. Where the integers a lane may hold are few against P,
a wrong tuple is caught by a few pixels, so the cost is M**k for the k limbs that this takes and M for every further
one, never M**N. What counts is how many integers are possible, not how large they are: with 256 plain values and E
values of noise that is 256 * E, however long V is (noisy Chinese remaindering: D. Bleichenbacher, P. Q. Nguyen,
EUROCRYPT 2000).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

MOST_TUPLES = 1 << 26
_SPARE_BITS = 10
_CHUNK = 1 << 20
# Above this products of residues and sums over limbs no longer fit int64.
_INT64_PRODUCT = 1 << 58
# A filter that keeps more than this share of wrong tuples is not worth running.
_USELESS = 0.9


class Form(Protocol):
    """What an integer of the true lanes looks like."""

    def density(self, modulus: int) -> float:
        """The share of residues modulo ``modulus`` that are of the form, at most 1."""

    def fits(self, values: np.ndarray, modulus: int) -> np.ndarray:
        """Which ``values``, 0 <= v < modulus, int64 or object, are congruent to an integer of the form."""


@dataclass(frozen=True)
class Near:
    """Integers start + e with 0 <= e < span, for one of ``starts``."""

    starts: tuple[int, ...]
    span: int

    def density(self, modulus: int) -> float:
        lowest = self._starts(modulus)
        gaps = [high - low for low, high in zip(lowest, [*lowest[1:], lowest[0] + modulus], strict=True)]
        return sum(min(gap, self.span) for gap in gaps) / modulus

    def fits(self, values: np.ndarray, modulus: int) -> np.ndarray:
        lowest = np.array(self._starts(modulus), values.dtype)
        # Below the first start lies the last one, once round; the index -1 is just that.
        nearest = lowest[np.searchsorted(lowest, values, side="right") - 1]
        inside: np.ndarray = (values - nearest) % modulus < self.span
        return inside

    def _starts(self, modulus: int) -> list[int]:
        return sorted({start % modulus for start in self.starts})


@dataclass(frozen=True)
class Fractions:
    """Quotients n / d of integers with |n|, |d| <= bound."""

    bound: int

    def density(self, modulus: int) -> float:
        if modulus <= 2 * self.bound**2:
            return 1.0  # not unique, and Euclid need not come past the right one
        return min(1.0, 12 / math.pi**2 * self.bound**2 / modulus)  # coprime pairs

    def fits(self, values: np.ndarray, modulus: int) -> np.ndarray:
        """Extended Euclid until the remainder is at most ``bound``; the cofactor is the denominator."""
        high, low = np.full_like(values, modulus), values.copy()
        before, after = np.zeros_like(values), np.ones_like(values)
        while len(going := np.flatnonzero(low > self.bound)):
            quotient = high[going] // low[going]
            high[going], low[going] = low[going], high[going] - quotient * low[going]
            before[going], after[going] = after[going], before[going] - quotient * after[going]
        small: np.ndarray = abs(after) <= self.bound
        return small


@dataclass(frozen=True, eq=False)
class Trials:
    """Integers of unknown lanes: ``residues[p]`` int64 ``[M, n]`` modulo ``moduli[p]``; column i is of ``forms[i]``."""

    moduli: Sequence[int]
    residues: Sequence[np.ndarray]
    forms: Sequence[Form]

    def bits(self, modulus: int) -> float:
        """-log2 of the chance that a wrong tuple fits in all columns."""
        cache: dict[Form, float] = {}
        total = 0.0
        for form in self.forms:
            if form not in cache:
                cache[form] = -math.log2(max(form.density(modulus), 2.0**-60))
            total += cache[form]
        return total

    def limbs_needed(self, spare_bits: float) -> int | None:
        """The fewest limbs, in their order, after which chance leaves no wrong tuple; None if all are not enough."""
        product, lanes = 1, len(self.residues[0])
        for count, b in enumerate(self.moduli, 1):
            product *= b
            if self.bits(product) > count * math.log2(max(2, lanes)) + spare_bits:
                return count
        return None


def search(trials: Trials, share: float = 1.0, beyond: int = 0, most: int = MOST_TUPLES) -> tuple[int, np.ndarray]:
    """(limbs used, lane tuples ``[survivors, limbs]``) of the first limbs.

    Goes on to further limbs until one tuple is left that chance does not explain and the product of the moduli exceeds
    ``beyond``, or no limbs are left; no survivors where more than ``most`` tuples would have to be tried at once.
    share: of the columns that must fit; below 1 tolerates wrong guesses.
    """
    lanes = len(trials.residues[0])
    tuples = np.zeros((1, 0), np.int16)
    product = 1
    for count, b in enumerate(trials.moduli, 1):
        product *= b
        if len(tuples) * lanes > most:
            return count - 1, tuples[:0]
        terms = _terms(trials, count, product)
        step = max(1, _CHUNK // lanes)
        kept = [_fitting(trials, terms, product, tuples[i : i + step], share) for i in range(0, len(tuples), step)]
        tuples = np.concatenate(kept)
        sure = trials.bits(product) * share > count * math.log2(max(2, lanes)) + _SPARE_BITS
        if len(tuples) == 0 or (len(tuples) == 1 and sure and product > beyond):
            return count, tuples
    return len(trials.moduli), tuples


def _terms(trials: Trials, count: int, product: int) -> list[np.ndarray]:
    """``[M, n]`` for each of the first limbs; a tuple's integer is their sum modulo ``product``."""
    kind: type = np.int64 if product < _INT64_PRODUCT else object
    terms: list[np.ndarray] = []
    for b, residues in zip(trials.moduli[:count], trials.residues, strict=False):
        cofactor = product // b
        digits = residues * pow(cofactor, -1, b) % b  # below 2**62 before the reduction
        terms.append(digits.astype(kind) * cofactor)
    return terms


def _fitting(trials: Trials, terms: list[np.ndarray], product: int, tuples: np.ndarray, share: float) -> np.ndarray:
    """``tuples`` with every lane of one more limb, without those that do not fit."""
    lanes = len(terms[0])
    wider = np.column_stack([np.repeat(tuples, lanes, axis=0), np.tile(np.arange(lanes, dtype=np.int16), len(tuples))])
    columns = len(trials.forms)
    allowed = math.floor(columns * (1 - share))
    misses = np.zeros(len(wider), np.int64)
    useless: dict[Form, bool] = {}
    for column, form in enumerate(trials.forms):
        if form not in useless:
            useless[form] = form.density(product) > _USELESS
        if useless[form]:
            continue
        values = sum(term[wider[:, i], column] for i, term in enumerate(terms)) % product
        misses += ~form.fits(values, product)
        good = misses <= allowed
        wider, misses = wider[good], misses[good]
    return wider
