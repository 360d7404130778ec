"""Intervals of exact integers, one for each channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False, slots=True)
class Intervals:
    """lower[c] <= V <= upper[c] for every V of channel c (entry c of a vector); object arrays [C] of Python ints."""

    lower: np.ndarray
    upper: np.ndarray

    @staticmethod
    def of(pairs: Sequence[tuple[int, int]]) -> Intervals:
        """From (lower, upper) for each channel."""
        return Intervals(np.array([p[0] for p in pairs], object), np.array([p[1] for p in pairs], object))

    @property
    def bound(self) -> int:
        """The largest |V| of any channel."""
        return max(abs(int(self.lower.min())), abs(int(self.upper.max())))

    def scaled(self, factor: int) -> Intervals:
        """For factor * V."""
        ends = (self.lower * factor, self.upper * factor)
        return Intervals(*(ends if factor >= 0 else ends[::-1]))

    def intersection(self, other: Intervals) -> Intervals:
        """What both allow."""
        return Intervals(np.maximum(self.lower, other.lower), np.minimum(self.upper, other.upper))
